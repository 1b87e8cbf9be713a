"""Initial parameters from a trained model: a run, one of its checkpoints, or a Hugging Face folder."""

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import parallel
from ssljax.base.buckets import is_address
from ssljax.base.errors import UserError
from ssljax.base.files import local_folder, read_json
from ssljax.config import InitFrom
from ssljax.data.sources import expand
from ssljax.interop import hf
from ssljax.layers.positions import resize_table, sincos_2d
from ssljax.layers.terms.grid import grid_pairs
from ssljax.models.mae import AutoencoderConfig
from ssljax.objectives.base import with_copies
from ssljax.runs.assembly import Assembly
from ssljax.runs.trained import Trained, read_trained
from ssljax.runs.workdir import Workdir
from ssljax.train.state import State

log = logging.getLogger(__name__)

Resize = Callable[[np.ndarray], np.ndarray]


def initial_state(assembly: Assembly, workdir: Workdir) -> State:
    """Returns the state before the first step: random values, or learned ones if the config has `init_from`.

    Raises:
        UserError: the source of `init_from` does not exist or does not fit.
    """
    config, program = assembly.config, assembly.program
    parts = read_frozen(program.objective.unwrapped, program.shapes.extra)
    if config.init_from is None:
        workdir.write_init_report(None)
        return with_frozen(program.jitted_init()(config.seed), parts)
    # Before compilation, so that a mistake in `init_from` is reported early.
    source = open_source(config.init_from, program.mesh)
    values, report = match_parameters(config.init_from, source, program.objective, program.shapes.params)
    for line in report.lines():
        log.info("init_from: %s", line)
    workdir.write_init_report(dataclasses.asdict(report))
    state = program.jitted_init()(config.seed)
    filled = fill_state(values, state, program.optimization.init, program.objective.not_copies)
    return with_frozen(filled, parts)


def read_frozen(objective: Any, shapes: Any) -> dict[str, Any]:
    """Reads the parts of the extra state that come from trained runs: {name: tree of arrays on the host}.

    Args:
        objective: the objective of the new run, without wrapper.
        shapes: shapes of its extra state.

    Raises:
        UserError: a run does not exist, or its networks have other shapes.
    """
    parts = {}
    for name, (key, path) in objective.frozen_parts.items():
        trained = _trained_at(path, key)
        if trained is None:
            raise UserError(f"{key}: {path!r} must be a workdir, or one of its checkpoints/STEP")
        try:
            part = objective.frozen_part(trained.objective.unwrapped, trained.params, trained.extra)
        except UserError as error:
            raise UserError(f"{key}: {path!r} {error}") from error
        found, wanted = hf.flat(part), hf.flat(shapes[name])
        wrong = [p for p in wanted.keys() | found.keys() if _shape(found.get(p)) != _shape(wanted.get(p))]
        if wrong:
            first = min(wrong)
            had, needed = (_shape(arrays.get(first)) for arrays in (found, wanted))
            raise UserError(
                f"{key}: {path!r} has networks of other shapes: {len(wrong)} arrays differ, such as {first}, there "
                f"{had}, here {needed} (give the model of that run)"
            )
        log.info("%s: %s (step %d)", key, trained.folder, trained.step)
        parts[name] = part
    return parts


def with_frozen(state: State, parts: Mapping[str, Any]) -> State:
    """Returns a state whose extra state has the parts."""

    def placed(value: Any, leaf: jax.Array) -> jax.Array:
        return parallel.put_whole(np.asarray(value).astype(leaf.dtype), leaf.sharding)

    frozen = {name: jax.tree.map(placed, part, state.extra[name]) for name, part in parts.items()}
    return state.replace(extra={**state.extra, **frozen}) if frozen else state


def _shape(array: Any) -> list[int] | None:
    return None if array is None else list(array.shape)


@dataclasses.dataclass(frozen=True)
class Source:
    """Learned parameters by path.

    Attributes:
        model: parameters of the model.
        rest: other parameters of the objective.
        module: the model.
        origin: the folder of the parameters, for messages.
    """

    model: Mapping[str, Any]
    rest: Mapping[str, Any]
    module: Any
    origin: str


@dataclasses.dataclass(frozen=True)
class InitReport:
    """A report on the parameters of the new run, by path.

    Attributes:
        origin: the folder of the source.
        loaded: parameters that were loaded unchanged.
        resized: parameters that were loaded and resized -> "old shape -> new shape".
        kept: parameters that keep their initial values -> the reason.
        unused: parameters of the source without a counterpart in the run.
    """

    origin: str
    loaded: list[str]
    resized: dict[str, str]
    kept: dict[str, str]
    unused: list[str]

    def lines(self) -> list[str]:
        """Returns the report as lines for the log."""
        count = len(self.loaded) + len(self.resized)
        out = [f"{count} of {count + len(self.kept)} arrays from {self.origin}"]
        out += [f"resized: {path}, {how}" for path, how in self.resized.items()]
        out += [f"initial values kept: {path}, {why}" for path, why in self.kept.items()]
        return [*out, *(f"not used: {path}" for path in self.unused)]


def open_source(config: InitFrom, mesh: jax.sharding.Mesh | None = None) -> Source:
    """Reads the parameters at `config.path`.

    Args:
        config: the group `init_from`.
        mesh: the parameters of a Hugging Face folder are sharded over it; None: the default device.

    Raises:
        UserError: the path does not exist, or holds no model.
    """
    trained = _trained_at(config.path, "init_from.path")
    if trained is not None:
        return _run_source(trained)
    folder = local_folder(expand(config.path, "init_from.path"), "init_from.path")
    if (folder / "config.json").is_file() and "model_type" in read_json(folder / "config.json"):
        return _hugging_face_source(hf.load(folder, strict=False, mesh=mesh))
    problem = "holds no model" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
    raise UserError(
        f"init_from.path: {config.path!r} {problem}, must be a workdir, one of its checkpoints/STEP, or a folder "
        f"in the Hugging Face format"
    )


def _trained_at(path: str, key: str) -> Trained | None:
    """Reads the trained model of a workdir or of one of its checkpoints; None: the path is neither."""
    place = expand(path, key)
    if is_address(place):
        return read_trained(place)
    folder = local_folder(place, key)
    if Workdir(folder).is_run():
        return read_trained(folder)
    if folder.parent.name == "checkpoints" and folder.name.isdigit() and Workdir(folder.parent.parent).is_run():
        return read_trained(folder.parent.parent, int(folder.name))
    return None


def _hugging_face_source(model: hf.Model) -> Source:
    arrays = {k: v for k, v in hf.flat(model.variables["params"]).items() if k not in model.missing}
    rest, module = dict.fromkeys(model.unused), model.module
    if isinstance(model.config, AutoencoderConfig):  # the decoder belongs to the objective
        rest |= {path: value for path, value in arrays.items() if path.startswith("decoder/")}
        arrays = {path.removeprefix("encoder/"): value for path, value in arrays.items() if path not in rest}
        module = model.config.encoder.standalone()
    return Source(arrays, rest, module, str(model.folder))


def _run_source(trained: Trained) -> Source:
    objective, origin = trained.objective, f"{trained.folder} (step {trained.step})"
    model = hf.flat(trained.model_params)
    rest = {} if objective.model_key is None else hf.flat(trained.params)
    rest = {path: value for path, value in rest.items() if not path.startswith(f"{objective.model_key}/")}
    return Source(model, rest, objective.model, origin)


def match_parameters(
    config: InitFrom, source: Source, objective: Any, shapes: Any
) -> tuple[dict[str, Any], InitReport]:
    """Selects values of the source for the parameters of a run.

    A parameter of the model whose shape differs is resized if possible: positions, biases by distance, and heads of
    keys and values. Otherwise it is an error, unless `exclude` matches it. Any other parameter of the objective (a
    classifier, say) whose shape differs keeps its initial values.

    Args:
        config: the group `init_from`.
        source: learned parameters.
        objective: the objective of the new run.
        shapes: shapes of the parameters of the new run.

    Returns:
        {path: array} for the parameters that are loaded, and the report.

    Raises:
        UserError: shapes differ, a pattern matches no parameter, or no parameter can be loaded.
    """
    prefix = "" if objective.model_key is None else f"{objective.model_key}/"
    targets = hf.flat(shapes)
    _check_patterns(config, targets)
    values: dict[str, Any] = {}
    resized, kept, wrong, found = {}, {}, [], set()
    for path, target in targets.items():
        in_model = path.startswith(prefix)
        name = path[len(prefix) :] if in_model else path
        value = (source.model if in_model else source.rest).get(name)
        if value is None:
            kept[path] = "not in the source"
            continue
        found.add((in_model, name))
        if not config.selects(path):
            kept[path] = "excluded"
            continue
        if value.shape != target.shape and (in_model or name.endswith("/positions")):
            resize = _resizing(name, source.module, objective.model, value, target.shape, config.heads)
            if resize is not None:
                resized[path] = f"{list(value.shape)} -> {list(target.shape)}"
                value = resize(np.asarray(value))
        if value.shape == target.shape:
            values[path] = value.astype(target.dtype)
        elif in_model:
            wrong.append(f"{path} {list(value.shape)}, not {list(target.shape)}")
        else:
            kept[path] = f"{list(value.shape)} in the source"
    _check_matches(source, targets, values, wrong)
    parts = ((True, source.model), (False, source.rest))
    left = [item for in_model, part in parts for item in part.items() if (in_model, item[0]) not in found]
    unused = [name for name, value in left if not _is_fixed(name, value, source.module)]
    loaded = [path for path in values if path not in resized]
    return values, InitReport(source.origin, loaded, resized, kept, unused)


def _check_matches(source: Source, targets: Mapping[str, Any], values: Mapping[str, Any], wrong: list[str]) -> None:
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise UserError(
            f"init_from.path: {source.origin} has a model of other shapes: {shown} (change the model, or exclude them "
            f"with init_from.exclude)"
        )
    if not values:
        raise UserError(
            f"init_from: no parameter of {source.origin} fits (it has {_sample(source.model)}; the run has "
            f"{_sample(targets)})"
        )


def fill_state(
    values: Mapping[str, Any], state: State, init_optimizer: Callable[[Any], Any], left_out: tuple[str, ...] = ()
) -> State:
    """Returns a state with new values of parameters, of their average, and of their copies in the extra state.

    `objectives.base.with_copies` finds the copies in the extra state (a teacher's parameters, say).

    Args:
        values: {path: array}; other parameters keep their values.
        state: the state to fill.
        init_optimizer: params -> initial state of the optimiser.
        left_out: names at the top of the extra state that have no copies.
    """

    def learned(path: Any, leaf: jax.Array) -> jax.Array:
        name = _path(path)
        found = values.get(name)
        return leaf if found is None else parallel.put_whole(found, leaf.sharding)

    params = jax.tree_util.tree_map_with_path(learned, state.params)
    copies = with_copies(state.extra, values, left_out)
    placed = lambda new, old: new if new is old else parallel.put_whole(new, old.sharding)  # noqa: E731
    extra = jax.tree.map(placed, copies, state.extra)
    ema = None if state.ema is None else params
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    # A compiled copy gives every leaf a separate buffer on the device.
    fresh = jax.jit(
        lambda params, ema, extra: (*jax.tree.map(jnp.copy, (params, ema, extra)), init_optimizer(params)),
        out_shardings=(shardings.params, shardings.ema, shardings.extra, shardings.opt_state),
    )
    params, ema, extra, opt_state = fresh(params, ema, extra)
    return state.replace(params=params, ema=ema, extra=extra, opt_state=opt_state)


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _resizing(
    name: str, source: Any, target: Any, table: np.ndarray, shape: tuple[int, ...], heads: str
) -> Resize | None:
    """Returns the function that resizes a parameter to `shape`; None if it cannot be resized.

    Tables of positions, biases by distance, and projections to keys and values can be resized.
    """
    if re.search(r"attention/[kv]/(kernel|bias)$", name):
        return _grouping(source, target, table, shape, heads)
    if name.endswith("/relative_bias"):
        return _stretching(source, target, table.shape, shape)
    if table.ndim != 2 or table.shape[1:] != shape[1:]:
        return None
    if name.rpartition("/")[2] == "positions":
        before, after = _grid(source, len(table)), _grid(target, shape[0])
        if before is None or after is None:
            return None
        front = len(table) - math.prod(before)  # class tokens have positions too
        if front < 0 or front != shape[0] - math.prod(after):
            return None
        antialias = source.config.antialias
        grid = lambda table: np.asarray(resize_table(jnp.asarray(table[front:]), before, after, antialias))  # noqa: E731
        return lambda table: np.concatenate([table[:front], grid(table)])
    if name.endswith("position_embed/embedding"):
        offset = getattr(target.config, "position_offset", 0)
        return lambda table: np.concatenate([table[:offset], stretched(table[offset:], shape[0] - offset)])
    return None


def _stretching(source: Any, target: Any, before: tuple[int, ...], after: tuple[int, ...]) -> Resize | None:
    """Returns the function that stretches biases [..., R, H] of distances between patches to another grid (BEiT)."""
    if not hasattr(source, "grid") or not hasattr(target, "grid"):
        return None
    stretch = grid_pairs(target.grid(target.image_shape), source.grid(source.image_shape), prefix=0).stretch
    if stretch is None or (*before[:-2], len(stretch), before[-1]) != after:
        return None
    return lambda table: stretch @ table


def _grouping(source: Any, target: Any, kernel: np.ndarray, shape: tuple[int, ...], rule: str) -> Resize | None:
    """Returns the function that merges the heads of a projection [..., G * K] into fewer heads."""
    before, after = (getattr(getattr(module, "config", None), "groups", 0) for module in (source, target))
    if not before or not after or before % after or kernel.shape[:-1] != shape[:-1]:
        return None
    width = shape[-1] // after
    if kernel.shape[-1] != before * width:
        return None

    def pooled(kernel: np.ndarray) -> np.ndarray:
        heads = kernel.reshape(*kernel.shape[:-1], after, before // after, width)
        return (heads.mean(-2) if rule == "mean" else heads[..., 0, :]).reshape(shape)

    return pooled


def _is_fixed(name: str, table: Any, module: Any) -> bool:
    """Returns True for a table of fixed positions, which the new model computes."""
    grid = _grid(module, len(table)) if name.rpartition("/")[2] == "positions" and table is not None else None
    if grid is None or len(table) < math.prod(grid):
        return False
    fixed = np.pad(sincos_2d(grid, table.shape[1]), ((len(table) - math.prod(grid), 0), (0, 0)))
    return table.shape == fixed.shape and np.allclose(table, fixed, atol=1e-6)


def _grid(module: Any, rows: int) -> tuple[int, int] | None:
    """Returns (rows, columns) of the grid of patches for a table of positions; None if the grid is unknown."""
    if hasattr(module, "grid"):
        return module.grid(module.image_shape)
    side = math.isqrt(rows)
    return (side, side) if side * side == rows else None


def stretched(table: np.ndarray, rows: int) -> np.ndarray:
    """Returns a table [positions, D] with another number of rows.

    A longer table is cut. A shorter one is interpolated linearly, with the new positions spread evenly over the old.
    """
    if rows <= len(table):
        return table[:rows]
    location = np.linspace(0, len(table) - 1, rows)
    below = np.minimum(location.astype(int), len(table) - 2)
    share = (location - below)[:, None]
    return ((1 - share) * table[below] + share * table[below + 1]).astype(table.dtype)


def _check_patterns(config: InitFrom, paths: Mapping[str, Any]) -> None:
    for key in ("include", "exclude"):
        for pattern in getattr(config, key) or ():
            if not any(re.search(pattern, path) for path in paths):
                raise UserError(f"init_from.{key}: {pattern!r} matches no parameter (the run has {_sample(paths)})")


def _sample(paths: Mapping[str, Any]) -> str:
    shown = list(paths)[:: max(1, len(paths) // 3)][:3]
    return f"{len(paths)}: {', '.join(shown)}, ..." if len(paths) > len(shown) else ", ".join(shown) or "none"
