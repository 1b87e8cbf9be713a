"""Configs: a file and overrides become a checked `RunConfig`; no device is used.

The steps are: `get_config(arg)` of the file, the overrides, the defaults of the dataclasses, validation.
"""

import ast
import copy
import dataclasses
import importlib.util
import inspect
import json
import math
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ssljax import evals, models, objectives
from ssljax.base import durations, schema
from ssljax.base.errors import UserError, located, nearest, shown
from ssljax.base.hashing import digest
from ssljax.base.plain import plain
from ssljax.data import DataConfig
from ssljax.parallel import MeshConfig
from ssljax.train import optimizers, schedules
from ssljax.train.checkpoint import CheckpointConfig, EarlyStopping
from ssljax.train.metrics import LogConfig


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Learned parameters as initial values. A checkpoint in the workdir takes precedence."""

    path: str = schema.setting(
        doc="a workdir (its newest checkpoint), a checkpoint (WORKDIR/checkpoints/STEP), or a folder in the Hugging "
        "Face format"
    )
    include: tuple[str, ...] | None = schema.setting(
        None, doc="regular expressions; only parameters whose path matches one are loaded; None: all"
    )
    exclude: tuple[str, ...] = schema.setting(
        (), doc="regular expressions; parameters whose path matches one keep their initial values"
    )
    heads: Literal["mean", "first"] = schema.setting(
        "mean",
        doc="heads of keys and values if the new model has fewer of them (`kv_heads`); 'mean': the mean of each group "
        "(Ainslie et al. 2023, section 2.1); 'first': the first head of each group",
    )

    def validate(self) -> None:
        for key in ("include", "exclude"):
            for pattern in getattr(self, key) or ():
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{key}: {pattern!r} is not a regular expression ({error})") from error

    def selects(self, path: str) -> bool:
        """Returns True if the parameter of this path is to be loaded."""

        def matches(patterns: tuple[str, ...]) -> bool:
            return any(re.search(pattern, path) for pattern in patterns)

        return (self.include is None or matches(self.include)) and not matches(self.exclude)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The configuration of one run."""

    model: Any = schema.setting(registry=models.REGISTRY, doc="the encoder")
    objective: Any = schema.setting(registry=objectives.REGISTRY, doc="the training objective")
    data: DataConfig = schema.setting(doc="the examples, their order and their form")
    optimizer: Any = schema.setting(registry=optimizers.REGISTRY, doc="the optimiser")
    steps: int | str = schema.setting(doc="length of the run, a duration such as '90 epochs'; an integer counts steps")
    batch_size: int = schema.setting(gt=0, doc="examples per step, over all devices and microbatches")
    schedule: Any = schema.setting(
        {"name": "constant"}, registry=schedules.REGISTRY, doc="factor of the learning rate at each step"
    )
    mesh: MeshConfig = schema.setting(MeshConfig(), free=True, doc="devices per axis of parallelism")
    evals: dict[str, Any] = schema.setting(
        {},
        free=True,
        each=evals.REGISTRY,
        doc="evaluations, name -> {type, ...}; the type defaults to the name",
    )
    checkpoint: CheckpointConfig = schema.setting(
        CheckpointConfig(), free=True, doc="when checkpoints are written and which are kept"
    )
    early_stopping: EarlyStopping | None = schema.setting(
        None, free=True, doc="end of the run before `steps` when a metric no longer improves; None: never"
    )
    log: LogConfig = schema.setting(LogConfig(), free=True, doc="how often metrics are read and where they are shown")
    seed: int = schema.setting(
        0,
        ge=0,
        lt=2**31,
        doc="random seed of parameters, views, noise, and of the data unless `data.seed` is given",
    )
    microbatches: int = schema.setting(
        1,
        gt=0,
        free=True,
        doc="slices in which a batch is encoded, to save memory; the result is the same up to rounding",
    )
    deterministic: bool = schema.setting(
        False,
        free=True,
        doc="on GPUs, use only kernels with equal results in every call; a resumed run then equals the uninterrupted "
        "one bit for bit, but is slower; CPUs and TPUs need no such key",
    )
    ema: float | None = schema.setting(
        None,
        gt=0,
        lt=1,
        doc="decay per step of the averaged parameters, which evaluations then use; None: no average",
    )
    init_from: InitFrom | None = schema.setting(
        None, doc="learned parameters to start from; None: random initialisation"
    )

    def validate(self) -> None:
        length, _ = durations.parse(self.steps, "steps")
        if length == 0 and self.init_from is None:
            raise ValueError(f"steps: got {self.steps!r}, must be at least 1 (with `init_from`, 0 evaluates only)")
        if self.batch_size % self.microbatches:
            raise ValueError(
                f"microbatches: got {self.microbatches}, must divide batch_size {self.batch_size} "
                f"(nearest that do: {_divisors_near(self.batch_size, self.microbatches)})"
            )
        built = evals.build(self.evals)
        best = self.checkpoint.best
        timed = [name for name, evaluation in built.items() if evaluation.every_steps]
        for key, rule in (("checkpoint.best", best), ("early_stopping", self.early_stopping)):
            if rule is not None and rule.metric.partition("/")[0] not in timed:
                raise ValueError(
                    f"{key}.metric: got {rule.metric!r}, must be 'evaluation/metric' of an evaluation with every_steps "
                    f"(there are: {', '.join(timed) or 'none'})"
                )
        if best is not None:
            name = best.metric.partition("/")[0]
            # A checkpoint is ranked by a metric that is measured at the same step.
            measured, saved = built[name].every_steps or 0, self.checkpoint.every_steps
            if saved is None or measured % saved:
                raise ValueError(
                    f"checkpoint.every_steps: got {saved}, must divide evals.{name}.every_steps {measured}, since "
                    f"checkpoint.best uses this evaluation"
                )

    def identity(self) -> dict[str, Any]:
        """Returns the keys that determine the learned parameters. Runs with equal identities are the same run."""
        identity = schema.to_dict(self, free=False)
        # The length of the run changes a step only if something is scheduled over the whole run.
        scheduled = (self.schedule.total_dependent, self.objective.total_dependent, self.optimizer.total_dependent)
        if not any(scheduled):
            del identity["steps"]
        return json.loads(json.dumps(identity))

    def hash(self) -> str:
        """Returns the hexadecimal hash of the identity, which names the run."""
        return digest(self.identity())

    def to_dict(self) -> dict[str, Any]:
        """Returns all keys as JSON values, defaults included.

        Evaluations have only the keys that were given; evals.jsonl records all of them.
        """
        return json.loads(json.dumps(schema.to_dict(self)))


def build(values: Mapping[str, Any]) -> RunConfig:
    """Builds a checked configuration from a mapping. Raises UserError if a key or a value is wrong."""
    return schema.build(RunConfig, values, "")


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> tuple[RunConfig, list[str]]:
    """Reads a config file and applies overrides.

    Args:
        path: "configs/vision/simclr.py" or "configs/vision/simclr.py:key=value,..." (the argument of `get_config`).
        overrides: (dotted key, text of the value), as on the command line.

    Returns:
        The configuration, and remarks for the user: keys that were dropped because their group was replaced. The group
        `study` of a study file is left out.

    Raises:
        UserError: the file is missing or fails, or a key or a value is wrong.
    """
    values, remarks = read_overridden(path, overrides)
    if values.pop("study", None) is not None:
        remarks.append("study: left out, the runs of a study are those of `ssljax sweep`")
    return build(values), remarks


def read_overridden(path: str, overrides: Sequence[tuple[str, str]]) -> tuple[dict[str, Any], list[str]]:
    """Reads a config file and applies overrides, without a check of the keys.

    Returns:
        The values, and remarks for the user: keys that were dropped because their group was replaced.

    Raises:
        UserError: the file is missing or fails, or a key is none.
    """
    values: Mapping[str, Any] = read_file(path)
    remarks: list[str] = []
    # A source comes first, since it drops the columns of the one that it replaces.
    for key, text in sorted(overrides, key=lambda pair: not pair[0].endswith(".source")):
        values, remark = override(values, key, parse_value(text))
        remarks += [remark] if remark else []
    return dict(values), remarks


def read_file(path: str) -> dict[str, Any]:
    """Returns the result of `get_config` of a config file, as a plain mapping.

    Raises:
        UserError: the file is missing, has no `get_config`, or fails.
    """
    name, argument = _split_argument(path)
    file = pathlib.Path(name)
    if not file.exists():
        file = shipped_configs().get(name, file)
    if not name.endswith(".py"):
        raise UserError(f"--config: got {shown(path)}, must be a Python file, FILE.py or FILE.py:ARGUMENT")
    if not file.is_file():
        raise UserError(f"--config: no file {name!r} (`ssljax list configs` prints those that ship)")
    config = _with_module(file, lambda module: _call(module, file, argument))
    values = plain(config)
    if not isinstance(values, Mapping):
        raise UserError(f"{name}: get_config returned {shown(config)}, must return a config (a ConfigDict or a dict)")
    return dict(values)


def topologies(path: str) -> dict[str, str]:
    """Returns {argument of the file: hardware that the config is planned for, such as "v5e:16x16"} of a recipe.

    Other configs name no hardware. The argument "" stands for the file without an argument.
    """
    name, _ = _split_argument(path)
    file = pathlib.Path(name)
    file = file if file.exists() else shipped_configs().get(name, file)
    if not file.is_file():
        raise UserError(f"--config: no file {name!r} (`ssljax list configs` prints those that ship)")
    return dict(_with_module(file, lambda module: getattr(module, "TOPOLOGIES", {})))


def shipped_configs() -> dict[str, pathlib.Path]:
    """Returns the config files that ship with the package, by names such as "configs/quickstart.py"."""
    package = pathlib.Path(__file__).parent
    # A wheel has them inside the package, a checkout beside it.
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None)
    if folder is None:
        return {}
    files = sorted(folder.rglob("[!_]*.py"))
    return {f"configs/{file.relative_to(folder).as_posix()}": file for file in files}


def _split_argument(path: str) -> tuple[str, str]:
    """Splits "FILE.py:ARGUMENT" at the first ".py:"; the names of folders may have colons too."""
    name, colon, argument = path.partition(".py:")
    return (f"{name}.py", argument) if colon else (path, "")


def _with_module(file: pathlib.Path, use: Callable[[Any], Any]) -> Any:
    """Returns the result of `use` of a config file as a module. Raises UserError if the file or `use` fails."""
    spec = importlib.util.spec_from_file_location("ssljax_config", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.path.copy()
    sys.path.insert(0, str(file.parent))  # configs import shared modules from their folder
    try:
        spec.loader.exec_module(module)
        return use(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{file}: {located(error)}") from error
    finally:
        sys.path[:] = before


def _call(module: Any, file: pathlib.Path, argument: str) -> Any:
    """Returns the result of `get_config(argument)` of a module, or of `get_config()` if it takes no argument."""
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"{file}: has no get_config(arg)")
    return get_config(argument) if argument or inspect.signature(get_config).parameters else get_config()


def arguments(text: str, **defaults: Any) -> dict[str, Any]:
    """Parses the argument of a config file, "key=value,key=value". Keys that are not given keep their defaults.

    A default that is a tuple lists the allowed values; its first value is the default.

    Raises:
        UserError: an unknown key, or a value that is not allowed.

    >>> arguments("depth=6", depth=12, data=("cifar10", "mnist"))
    {'depth': 6, 'data': 'cifar10'}
    """
    values = {key: default[0] if isinstance(default, tuple) else default for key, default in defaults.items()}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if key not in defaults or not equals:
            raise UserError(f"--config: argument {item!r} is not key=value with a key of {', '.join(defaults)}")
        values[key], allowed = parse_value(value), defaults[key]
        if isinstance(allowed, tuple) and values[key] not in allowed:
            options = ", ".join(map(str, allowed))
            raise UserError(f"--config: argument {key}: got {value!r}{nearest(value, allowed)} (allowed: {options})")
    return values


def parse_value(text: str) -> Any:
    """Parses the value of an override: a Python literal, true/false/none in any case, or the text itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def override(values: Mapping[str, Any], key: str, value: Any) -> tuple[dict[str, Any], str]:
    """Returns a copy of `values` with the dotted `key` set, and a remark for the user.

    Another `name` (or `type`) of a group replaces the whole group, since its keys belong to the old name. Another
    `source` drops the keys that describe the old one (`keys`, `where`, `num_classes`). The remark lists the dropped
    keys; without any it is empty.

    Raises:
        UserError: a part of the key is empty or not a group.
    """
    changed = copy.deepcopy(dict(values))
    *groups, last = key.split(".")
    if not all([*groups, last]):
        raise UserError(f"--config.{key}: has an empty name between its dots")
    group = changed
    for depth, part in enumerate(groups):
        if group.get(part) is None:
            group[part] = {}
        if not isinstance(group[part], dict):
            raise UserError(f"{'.'.join(groups[: depth + 1])}: is not a group of keys, so {key!r} cannot be set")
        group = group[part]
    remark = ""
    if last in ("name", "type") and groups and group.get(last, value) != value:
        dropped = [k for k in group if k != last]
        if dropped:
            replaced = f"{'.'.join(groups)}: {group[last]!r} replaced by {value!r}"
            remark = f"{replaced}; these keys were dropped: {', '.join(dropped)}"
        group.clear()
    if last == "source" and group.get(last, value) != value:
        dropped = [k for k in ("keys", "where", "num_classes") if group.pop(k, None)]
        remark = f"{key}: replaced; these keys of the old source were dropped: {', '.join(dropped)}" if dropped else ""
    group[last] = value
    return changed, remark


def difference(old: Any, new: Any, path: str = "") -> list[str]:
    """Lists the keys in which two configurations differ, one line per key: "objective.temperature: 0.1 -> 0.2"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in [*old, *(k for k in new if k not in old)]:
            inner = f"{path}.{key}" if path else str(key)
            lines += difference(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
        return lines
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()


def _divisors_near(n: int, k: int) -> str:
    """The divisors of n next to k, one on each side, as text."""
    root = math.isqrt(n) if n < 10**12 else 10**6
    small = [d for d in range(1, root + 1) if n % d == 0]
    divisors = sorted({*small, *(n // d for d in small)})
    below, above = [d for d in divisors if d < k], [d for d in divisors if d > k]
    return ", ".join(str(d) for d in [*below[-1:], *above[:1]])
