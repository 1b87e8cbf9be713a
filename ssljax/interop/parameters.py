"""Parameters from tensors, one tensor at a time, and tensors from parameters."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.interop.rules import Rule, active
from ssljax.interop.tensors import Planned, Tensors

_SHOWN = 20  # problems in one error message


class Source(NamedTuple):
    """Tensors, the rules that read them, and tensors that have no rule (`ignored`, `copies`: see `Family`).

    repeated: tensors that repeat the token table.
    """

    tensors: Tensors
    rules: Sequence[Rule]
    ignored: Sequence[str]
    copies: Mapping[str, str]
    repeated: Sequence[str]

    def stored(self, name: str) -> str | None:
        """Returns the name under which a tensor or its copy is stored; None if it is missing."""
        return next((each for each in (name, self.copies.get(name)) if each in self.tensors), None)

    def unused(self, used: set[str]) -> dict[str, str]:
        """Returns {unused tensor: the tensor that it should equal, or ""}."""
        rest = [name for name in self.tensors if name not in used and name not in self.repeated]
        rest = [name for name in rest if not any(re.search(pattern, name) for pattern in self.ignored)]
        same = {name: self.copies.get(name, "") for name in rest if 0 not in self.tensors.shape(name)}
        return {name: other for name, other in same.items() if not self._equal(name, other)}

    def _equal(self, name: str, other: str) -> bool:
        return other in self.tensors and np.array_equal(self.tensors[name], self.tensors[other])

    def read(self, name: str, rule: Rule, shapes: Sequence[tuple[int, ...]]) -> Sequence[np.ndarray]:
        """Returns the arrays of one tensor, which must have these shapes; none if it does not fit."""
        tensor = self.tensors[name]
        if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.itemsize == 1:
            folder = self.tensors.folder
            raise UserError(f"{folder}: {name}: is {tensor.dtype}, and quantised weights are not supported")
        try:
            parts = rule.op.read(tensor)
        except ValueError:  # the tensor cannot be split or reshaped
            return ()
        return parts if [part.shape for part in parts] == list(shapes) else ()


def load_parameters(
    module: Any, source: Source, strict: bool, mesh: jax.sharding.Mesh | None
) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """Reads the parameters of a module, tensor by tensor, onto a mesh (or the default device).

    Returns:
        The parameters, the paths of those without a tensor, and the unused tensors (both empty if `strict`).

    Raises:
        UserError: a tensor is quantised; with `strict`, tensors and parameters do not match one to one.
    """
    boxed = jax.eval_shape(module.initial, jax.random.key(0))["params"]
    shapes = flat(parallel.unboxed(boxed))
    shardings: dict[str, Any] = dict.fromkeys(shapes)
    if mesh is not None:
        shardings = flat(parallel.shardings(parallel.logical_axes(boxed), parallel.unboxed(boxed), mesh))
    # Without `strict`, blocks of a stack that have no tensor keep their initial values.
    params = {} if strict else _initial(module, None if mesh is None else tree(shardings))
    rules = active(source.rules, shapes)
    problems: list[str] = []
    used: set[str] = set()
    missing: set[str] = set()
    for rule in rules:
        for name, index in rule.names(shapes[rule.paths[0]].shape):
            stored = source.stored(name)
            if stored is None:
                problems.append(f"missing: {name}")
                missing.update(rule.paths)
                continue
            used.add(stored)
            parts = source.read(stored, rule, [shapes[path].shape[len(index) :] for path in rule.paths])
            if not parts:
                problems.append(f"shape: {stored} {list(source.tensors.shape(stored))} does not fit the configuration")
                missing.update(rule.paths)
            for path, part in zip(rule.paths, parts):
                params[path] = _put(params.get(path), part, index, shapes[path], shardings[path])
    for path in dict.fromkeys(path for rule in rules if rule.skip for path in rule.paths):  # one order in all processes
        if path not in params and path not in missing:  # no block of the stack has this tensor
            params[path] = _zeros(shapes[path], shardings[path])
    without_rule = [path for path in shapes if not any(path in rule.paths for rule in rules)]
    unused = source.unused(used)
    problems += [f"no rule: {path}" for path in without_rule]
    problems += [f"extra: {name}" + (f", other than {same}" if same else "") for name, same in unused.items()]
    if problems and strict:
        shown = problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])
        hint = f" ({_hint(unused)})" if len(problems) == len(unused) else ""
        raise UserError(f"{source.tensors.folder}: {len(problems)} tensors do not match: {'; '.join(shown)}{hint}")
    return tree(params), tuple(sorted({*missing, *without_rule})), tuple(unused)


def _hint(unused: Mapping[str, str]) -> str:
    """Names the option that leaves out tensors which no parameter reads, such as a classifier."""
    parts = "|".join(sorted({re.escape(name.partition(".")[0]) for name in unused}))
    return f"--leave-out '^({parts})\\b', or leave_out of hf.load, reads the model without heads"


def _initial(module: Any, shardings: Any) -> dict[str, jax.Array]:
    initial = jax.jit(lambda key: parallel.unboxed(module.initial(key)["params"]), out_shardings=shardings)
    return flat(initial(jax.random.key(0)))


def _zeros(shape: Any, sharding: Any) -> jax.Array:
    return jnp.zeros(shape.shape, shape.dtype, device=sharding)


def _put(whole: Any, part: np.ndarray, index: tuple[int, ...], shape: Any, sharding: Any) -> jax.Array:
    """Returns a parameter with a new part: one layer of a stack, or all of it. The host holds only this part."""
    part = np.asarray(part, shape.dtype)
    if not index:
        return parallel.put_whole(part, sharding)
    return _set(_zeros(shape, sharding) if whole is None else whole, part, index)


@functools.partial(jax.jit, donate_argnums=0)
def _set(whole: jax.Array, part: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
    start: list[Any] = [*index, *[0] * part.ndim]
    return jax.lax.dynamic_update_slice(whole, part.reshape(*[1] * len(index), *part.shape), start)


def tensors_from(rules: Sequence[Rule], params: Any) -> dict[str, Planned]:
    """Returns parameters (or their gradients) under the names of `transformers`, each to be made when it is needed."""
    arrays = flat(params)
    out: dict[str, Planned] = {}
    for rule in active(rules, arrays):
        parts = [arrays[path] for path in rule.paths]
        for name, index in rule.names(parts[0].shape):
            # An array without memory of its own gives the shape of the tensor.
            empty = [np.broadcast_to(np.zeros((), part.dtype), part.shape[len(index) :]) for part in parts]
            like = rule.op.write(empty)
            out[name] = Planned(like.shape, like.dtype, functools.partial(_made, rule, parts, index))
    return out


def _made(rule: Rule, parts: Sequence[Any], index: tuple[int, ...]) -> np.ndarray:
    return np.asarray(rule.op.write([np.asarray(part[index]) for part in parts]), order="C")


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to {"a/b": leaf}."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out


def tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flat`."""
    out: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        functools.reduce(lambda inner, parent: inner.setdefault(parent, {}), parents, out)[last] = value
    return out
