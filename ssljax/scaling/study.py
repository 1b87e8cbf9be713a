"""Studies: one config and the changes of its keys become a list of checked runs, each with a hash of its content."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.base.plain import dotted
from ssljax.config import RunConfig, build, override, read_overridden
from ssljax.scaling.axes import Axes, Changes, in_order, parse_distribution
from ssljax.scaling.cost import Costs
from ssljax.scaling.generators import GENERATORS, Base, Variant, ratio_text
from ssljax.scaling.halving import Halving

_LONGEST = 100  # characters of the name of a run, which is a name of a folder


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The group `study` of a study file."""

    name: str | None = schema.setting(None, doc="name of the study in its store; None: that of the file")
    grid: tuple[tuple[str, tuple[Any, ...]], ...] = schema.setting(
        (), doc="axes [(key, values), ...], whose product is taken"
    )
    zip: tuple[tuple[str, tuple[Any, ...]], ...] = schema.setting(
        (), doc="axes [(key, values), ...] of one length, which change together"
    )
    random: tuple[tuple[str, str], ...] = schema.setting(
        (), doc="drawn keys [(key, distribution), ...], such as ('optimizer.learning_rate', 'loguniform(1e-4,1e-2)')"
    )
    runs: int = schema.setting(0, ge=0, doc="number of draws of a random search")
    study_seed: int = schema.setting(0, ge=0, doc="seed of the draws")
    seeds: int = schema.setting(1, ge=1, doc="number of seeds of each run, from `seed` on")
    generator: Any = schema.setting(
        None, registry=GENERATORS, doc="rule that makes the runs, for each combination of the axes; None: axes alone"
    )
    halving: Halving | None = schema.setting(None, doc="early end of runs that do worse than others; None: none")

    def axes(self) -> Axes:
        """Returns the checked axes."""
        random = tuple((key, parse_distribution(text, f"study.random.{key}")) for key, text in self.random)
        axes = Axes(self.grid, self.zip, random, self.runs, self.study_seed, self.seeds)
        axes.check()
        return axes


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of a study.

    Attributes:
        hash: hash of its content, the name of its folder in a store.
        name: its changes in words, the name of a link to the folder.
        changes: {dotted key: value}, how it differs from the config of the study.
        config: the checked config.
        labels: the values that name it, such as {"budget": 1e12, "depth": 4}.
        parent: hash of the run whose last state it continues; None: it begins from scratch.
        stop: step after which it is done, as the beginning of other runs; None: it ends with its last step.
    """

    hash: str
    name: str
    changes: Changes
    config: RunConfig
    labels: Changes = dataclasses.field(default_factory=dict)
    parent: str | None = None
    stop: int | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs of a study.

    Attributes:
        name: its name.
        runs: the runs; one that continues another comes after it.
        halving: rule that ends runs early; None: none.
        remarks: remarks for the user, such as keys that a change dropped.
    """

    name: str
    runs: tuple[PlannedRun, ...]
    halving: Halving | None = None
    remarks: tuple[str, ...] = ()


def run_hash(config: RunConfig) -> str:
    """Returns the hash that names a run in a store: of the identity of its config, and of its length.

    Free keys (mesh, logging, checkpoints, evaluations) do not matter. The identity leaves the length out where nothing
    depends on it, since a longer run continues a shorter one; their results differ, so the hash has it.
    """
    return digest({"steps": config.steps, **config.identity()})


class _Values:
    """A config as a mapping, of which generators make checked variants."""

    def __init__(self, values: Mapping[str, Any], changes: Mapping[str, Any], costs: Costs, remarks: dict[str, None]):
        self.costs, self._remarks = costs, remarks
        self._values = self._changed(values, changes)

    def _changed(self, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        out = dict(values)
        for key, value in in_order(changes):
            out, remark = override(out, key, value)
            if remark:
                self._remarks[remark] = None
        return out

    def config(self, changes: Mapping[str, Any]) -> RunConfig:
        return build(self._changed(self._values, changes))


def read_study(
    path: str, overrides: Sequence[tuple[str, str]] = (), given: Mapping[str, Any] | None = None, costs: Any = None
) -> Study:
    """Reads a config or study file and makes the runs of the study.

    Args:
        path: a file as for `ssljax train`; in a study file, `get_config` returns the group `study` beside the others.
        overrides: (dotted key, text of the value), as on the command line; `study.*` too.
        given: keys of the group `study` that replace those of the file.
        costs: None, or `Costs` to share with other calls.

    Raises:
        UserError: the file, a key or a value is wrong; two runs are the same.
    """
    values, remarks = read_overridden(path, overrides)
    group = {**(values.pop("study", None) or {}), **(given or {})}
    study = schema.build(StudyConfig, group, "study")
    stem = re.sub(r"\.py(:.*)?$", "", path).rpartition("/")[2]
    made = make_study(values, study, study.name or stem, costs)
    return dataclasses.replace(made, remarks=(*remarks, *made.remarks))


def make_study(values: Mapping[str, Any], study: StudyConfig, name: str, costs: Costs | None = None) -> Study:
    """Makes the runs of a study from a config as a mapping.

    Raises:
        UserError: a key or a value is wrong, or two runs are the same.
    """
    check_name(name)
    costs, remarks = costs or Costs(), dict[str, None]()
    seed = build(values).seed
    runs = list[PlannedRun]()
    for outer in study.axes().changes(seed):
        base: Base = _Values(values, outer, costs, remarks)
        variants = study.generator.variants(base) if study.generator else [Variant({}, {})]
        first = len(runs)
        for variant in variants:
            config = base.config(variant.changes)
            parent = None if variant.after is None else runs[first + variant.after].hash
            changes = dotted({**outer, **variant.changes})
            labels = {**variant.label, **outer}
            runs.append(PlannedRun(run_hash(config), "", changes, config, labels, parent, variant.stop))
    if study.halving and any(run.stop for run in runs):
        raise UserError("study.halving: cannot be used with cool-downs, whose runs wait for their trunk")
    names = run_names([run.labels for run in runs])
    named = [dataclasses.replace(run, name=name) for run, name in zip(runs, names)]
    _refuse_equal(named)
    return Study(name, tuple(named), study.halving, tuple(remarks))


def check_name(name: str) -> None:
    """Raises UserError unless the name of a study can be the name of a folder in a store."""
    if not re.fullmatch(r"[\w][\w.+-]{0,99}", name) or name == "runs":
        raise UserError(
            f"--name: got {name!r}, must be letters, digits and . _ + - (at most 100), and not 'runs'; "
            f"it names a folder in the store"
        )


def _refuse_equal(runs: list[PlannedRun]) -> None:
    """Raises UserError if two runs are the same."""
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        other = seen.setdefault(run.hash, run)
        if other is run:
            continue
        keys = [key for key in run.changes if run.changes[key] != other.changes.get(key)]
        if not keys:
            raise UserError(f"study: the run {other.name!r} occurs twice; give each value of an axis once")
        shown = f"{keys[0]}={other.changes.get(keys[0])!r} and {run.changes[keys[0]]!r}"
        raise UserError(
            f"{shown} are the same run, since the key does not change what is learned (or the value has no effect); "
            f"sweep another key"
        )


def run_names(labels: Sequence[Changes]) -> list[str]:
    """Returns a name for each run from the values that vary: "temperature=0.1,seed=0".

    A key is shortened to its last part where that is unambiguous. Names differ; long ones end in a number.
    """
    varying = [
        key
        for key in dict.fromkeys(itertools.chain.from_iterable(labels))
        if len({repr(label.get(key)) for label in labels}) > 1
    ]
    last = collections.Counter(key.rpartition(".")[2] for key in varying)
    short = {key: key.rpartition(".")[2] if last[key.rpartition(".")[2]] == 1 else key for key in varying}
    names = [",".join(f"{short[key]}={_text(label[key])}" for key in varying if key in label) for label in labels]
    names = [re.sub(r"[^\w.,=+-]+", "_", name)[:_LONGEST] or "run" for name in names]
    seen: collections.Counter[str] = collections.Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
    return out


def _text(value: Any) -> str:
    if isinstance(value, float):
        return ratio_text(value)
    return value if isinstance(value, str) else repr(value)
