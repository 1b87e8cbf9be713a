"""Training that starts from learned parameters: of a run, of one of its checkpoints, of a Hugging Face folder."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.data.sources import expand
from ssljax.interop import hf, workdir
from ssljax.layers.positions import grid_pairs, resize_table, sincos_2d
from ssljax.models.mae import AutoencoderConfig
from ssljax.train.state import State


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Parameters to start from, where there is no checkpoint to continue.

    path: a workdir (its newest checkpoint), a checkpoint (`WORKDIR/checkpoints/STEP`), or a folder in the Hugging Face
        format.
    include: regular expressions; only parameters whose path one of them matches are taken. None: all.
    exclude: regular expressions; parameters whose path one of them matches keep their initial values.
    heads: what becomes of the heads of keys and values where the new model has fewer (`kv_heads`): each group's mean
        (Ainslie et al. 2023, section 2.1), or its first.
    """

    path: str = schema.setting()
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    heads: Literal["mean", "first"] = "mean"

    def validate(self) -> None:
        for key in ("include", "exclude"):
            for pattern in getattr(self, key) or ():
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{key}: {pattern!r} is not a regular expression ({error})") from error

    def wants(self, path: str) -> bool:
        """Whether a parameter is asked for."""

        def found(patterns: tuple[str, ...]) -> bool:
            return any(re.search(pattern, path) for pattern in patterns)

        return (self.include is None or found(self.include)) and not found(self.exclude)


@dataclasses.dataclass(frozen=True)
class Source:
    """Learned parameters.

    model: path -> array, of the model. rest: path -> array, of what the objective has besides. module: of the model.
    where: what they were read from, for messages.
    """

    model: Mapping[str, Any]
    rest: Mapping[str, Any]
    module: Any
    where: str


@dataclasses.dataclass(frozen=True)
class Taken:
    """What became of a source; paths are those of the run that starts.

    taken: with the source's values. resized: the same at another length or image size. kept: with their initial
    values, and why. unused: parameters of the source that have no place.
    """

    where: str
    taken: list[str]
    resized: dict[str, str]
    kept: dict[str, str]
    unused: list[str]

    def lines(self) -> list[str]:
        """For the log."""
        count = len(self.taken) + len(self.resized)
        out = [f"{count} of {count + len(self.kept)} arrays from {self.where}"]
        out += [f"resized: {path}, {how}" for path, how in self.resized.items()]
        out += [f"initial values kept: {path}, {why}" for path, why in self.kept.items()]
        return [*out, *(f"not used: {path}" for path in self.unused)]


def open_source(config: InitFrom, mesh: jax.sharding.Mesh | None = None) -> Source:
    """Reads what `path` names; a folder in the Hugging Face format onto a mesh.

    Raises:
        UserError: there is nothing, or something else.
    """
    folder = pathlib.Path(expand(config.path, "init_from.path")).expanduser()
    if workdir.is_workdir(folder):
        return _learned(workdir.read(folder))
    if folder.parent.name == "checkpoints" and folder.name.isdigit() and workdir.is_workdir(folder.parent.parent):
        return _learned(workdir.read(folder.parent.parent, int(folder.name)))
    if (folder / "config.json").is_file() and "model_type" in hf.read_object(folder / "config.json"):
        return _published(hf.load(folder, strict=False, mesh=mesh))
    problem = "holds none" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
    raise UserError(
        f"init_from.path: {config.path!r} {problem} (a workdir, one of its checkpoints/STEP, or a folder in the "
        f"Hugging Face format is required)"
    )


def _published(model: hf.Model) -> Source:
    arrays = {k: v for k, v in hf.flat(model.variables["params"]).items() if k not in model.missing}
    rest, module = dict.fromkeys(model.unused), model.module
    if isinstance(model.config, AutoencoderConfig):  # the decoder is the objective's
        rest |= {path: value for path, value in arrays.items() if path.startswith("decoder/")}
        arrays = {path.removeprefix("encoder/"): value for path, value in arrays.items() if path not in rest}
        module = model.config.encoder.standalone()
    return Source(arrays, rest, module, str(model.folder))


def _learned(learned: workdir.Learned) -> Source:
    objective, where = learned.objective, f"{learned.folder} (step {learned.step})"
    model = hf.flat(learned.model_params)
    rest = {} if objective.model_key is None else hf.flat(learned.params)
    rest = {path: value for path, value in rest.items() if not path.startswith(f"{objective.model_key}/")}
    return Source(model, rest, objective.model, where)


def take(config: InitFrom, source: Source, objective: Any, shapes: Any) -> tuple[dict[str, Any], Taken]:
    """Values for parameters of these shapes, by path: arrays of the source where they have them, else new ones.

    A parameter of the model that has another shape is a mistake, unless it is a table of positions, which is resized,
    or `exclude` names it; what belongs to the objective (a classifier, say) then keeps its initial values.

    Raises:
        UserError: other shapes, a pattern that matches nothing, or nothing taken at all.
    """
    place = "" if objective.model_key is None else f"{objective.model_key}/"
    targets = hf.flat(shapes)
    _check_patterns(config, targets)
    values: dict[str, Any] = {}
    resized, kept, wrong, seen = {}, {}, [], set()
    for path, target in targets.items():
        ours = path.startswith(place)
        name = path[len(place) :] if ours else path
        value = (source.model if ours else source.rest).get(name)
        if value is None:
            kept[path] = "not there"
            continue
        seen.add((ours, name))
        if not config.wants(path):
            kept[path] = "left out"
            continue
        if value.shape != target.shape and (ours or name.endswith("/positions")):
            how = _resizing(name, source.module, objective.model, value, target.shape, config.heads)
            if how is not None:
                resized[path] = f"{list(value.shape)} -> {list(target.shape)}"
                value = how(np.asarray(value))
        if value.shape == target.shape:
            values[path] = value.astype(target.dtype)
        elif ours:
            wrong.append(f"{path} {list(value.shape)}, not {list(target.shape)}")
        else:
            kept[path] = f"{list(value.shape)} there"
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise UserError(
            f"init_from.path: {source.where} has a model of other shapes: {shown} (change the model, or leave them out "
            f"with init_from.exclude)"
        )
    if not values:
        raise UserError(
            f"init_from: nothing of {source.where} was taken (there are {_some(source.model)}; wanted {_some(targets)})"
        )
    parts = ((True, source.model), (False, source.rest))
    left = [item for ours, part in parts for item in part.items() if (ours, item[0]) not in seen]
    unused = [name for name, value in left if not _is_fixed(name, value, source.module)]
    return values, Taken(source.where, [p for p in values if p not in resized], resized, kept, unused)


def put(values: Mapping[str, Any], state: State, init_optimizer: Callable[[Any], Any]) -> State:
    """A new state with these values in the place of parameters, of their average, and of their copies in the extra
    state (teachers): those leaves whose path ends in the parameter's."""

    def learned(path: Any, leaf: jax.Array) -> jax.Array:
        name = _path(path)
        found = values.get(name)
        return leaf if found is None else jax.device_put(found, leaf.sharding)

    def copied(path: Any, leaf: jax.Array) -> jax.Array:
        parts = _path(path).split("/")
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        found = next((values[tail] for tail in tails if tail in values), None)
        return leaf if found is None or found.shape != leaf.shape else jax.device_put(found, leaf.sharding)

    params = jax.tree_util.tree_map_with_path(learned, state.params)
    extra = jax.tree_util.tree_map_with_path(copied, state.extra)
    ema = None if state.ema is None else params
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    # Through a program, so that no two leaves share a buffer and none is the host's.
    fresh = jax.jit(
        lambda params, ema, extra: (*jax.tree.map(jnp.copy, (params, ema, extra)), init_optimizer(params)),
        out_shardings=(places.params, places.ema, places.extra, places.opt_state),
    )
    params, ema, extra, opt_state = fresh(params, ema, extra)
    return state.replace(params=params, ema=ema, extra=extra, opt_state=opt_state)


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _resizing(
    name: str, source: Any, target: Any, table: np.ndarray, shape: tuple[int, ...], heads: str
) -> Callable[[np.ndarray], np.ndarray] | None:
    """How a table of positions or of biases of their distances, or a projection to keys or values, gets another shape;
    None where it cannot."""
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


def _stretching(
    source: Any, target: Any, before: tuple[int, ...], after: tuple[int, ...]
) -> Callable[[np.ndarray], np.ndarray] | None:
    """How biases [..., R, H] of the distances between patches are those of another grid (BEiT)."""
    if not hasattr(source, "grid") or not hasattr(target, "grid"):
        return None
    stretch = grid_pairs(target.grid(target.image_shape), source.grid(source.image_shape), prefix=0).stretch
    if stretch is None or (*before[:-2], len(stretch), before[-1]) != after:
        return None
    return lambda table: stretch @ table


def _grouping(
    source: Any, target: Any, kernel: np.ndarray, shape: tuple[int, ...], how: str
) -> Callable[[np.ndarray], np.ndarray] | None:
    """How the heads of a projection [..., G * K] become fewer."""
    before, after = (getattr(getattr(module, "config", None), "groups", 0) for module in (source, target))
    if not before or not after or before % after or kernel.shape[:-1] != shape[:-1]:
        return None
    width = shape[-1] // after
    if kernel.shape[-1] != before * width:
        return None

    def pooled(kernel: np.ndarray) -> np.ndarray:
        heads = kernel.reshape(*kernel.shape[:-1], after, before // after, width)
        return (heads.mean(-2) if how == "mean" else heads[..., 0, :]).reshape(shape)

    return pooled


def _is_fixed(name: str, table: Any, module: Any) -> bool:
    """Whether a table of positions is the fixed one, which the new model computes."""
    grid = _grid(module, len(table)) if name.rpartition("/")[2] == "positions" and table is not None else None
    if grid is None or len(table) < math.prod(grid):
        return False
    fixed = np.pad(sincos_2d(grid, table.shape[1]), ((len(table) - math.prod(grid), 0), (0, 0)))
    return table.shape == fixed.shape and np.allclose(table, fixed, atol=1e-6)


def _grid(module: Any, rows: int) -> tuple[int, int] | None:
    """(rows, columns) of the patches whose positions a table of so many rows holds."""
    if hasattr(module, "grid"):
        return module.grid(module.image_shape)
    side = math.isqrt(rows)
    return (side, side) if side * side == rows else None


def stretched(table: np.ndarray, rows: int) -> np.ndarray:
    """A table [positions, D] for another length: cut off where it is longer, else the positions are spread evenly over
    those that were learned, with linear interpolation between."""
    if rows <= len(table):
        return table[:rows]
    place = np.linspace(0, len(table) - 1, rows)
    below = np.minimum(place.astype(int), len(table) - 2)
    share = (place - below)[:, None]
    return ((1 - share) * table[below] + share * table[below + 1]).astype(table.dtype)


def _check_patterns(config: InitFrom, paths: Mapping[str, Any]) -> None:
    for key in ("include", "exclude"):
        for pattern in getattr(config, key) or ():
            if not any(re.search(pattern, path) for path in paths):
                raise UserError(f"init_from.{key}: {pattern!r} matches no parameter (there are {_some(paths)})")


def _some(paths: Mapping[str, Any]) -> str:
    shown = list(paths)[:: max(1, len(paths) // 3)][:3]
    return f"{len(paths)}: {', '.join(shown)}, ..." if len(paths) > len(shown) else ", ".join(shown) or "none"
