"""Masks of attention: the allowed pairs of queries and keys, as descriptions instead of arrays.

A description is a small pytree; `a & b` allows the pairs that both allow. A kernel that needs an array calls
`materialize`. Queries and keys are counted from the same start. Integer and boolean arrays inside are data, so they may
be traced.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp


class Span(NamedTuple):
    """Consecutive queries or keys; the start may be traced."""

    start: Any
    size: int

    def numbers(self) -> jax.Array:
        """The indices, int [size]."""
        return self.start + jnp.arange(self.size)

    def of(self, x: jax.Array, axis: int) -> jax.Array:
        """The slice of an axis. Elements beyond its end repeat the last one and must not be used."""
        if isinstance(self.start, int) and self.start + self.size <= x.shape[axis]:
            return jax.lax.slice_in_dim(x, self.start, self.start + self.size, axis=axis)
        return jnp.take(x, self.numbers(), axis=axis, mode="clip")


class Mask:
    """A description of allowed (query, key) pairs."""

    def __and__(self, other: "Mask") -> "Mask":
        parts: list[Mask] = []
        for part in (*parts_of(self), *parts_of(other)):
            if not any(part is p or (type(part) is type(p) is Causal) for p in parts):
                parts.append(part)
        return parts[0] if len(parts) == 1 else All(tuple(parts)) if parts else Full()

    def block(self, rows: Span, columns: Span) -> jax.Array | None:
        """The pairs of a block, bool, broadcastable to [B, 1, rows, columns]; None if all are allowed."""
        raise NotImplementedError


Described = TypeVar("Described", bound=type[Mask])


def _description(*leaves: str) -> Callable[[Described], Described]:
    """Makes a dataclass a pytree with these fields as leaves; its other fields and its class are the structure.

    jax.tree_util.register_dataclass leaves out the class: in jaxlib 0.10 two structures of equal fields are equal, with
    different hashes, so that one time in a hundred `jit` reuses the program of another mask.
    """

    def register(cls: Described) -> Described:
        rest = [f.name for f in dataclasses.fields(cls) if f.name not in leaves]  # type: ignore[arg-type]

        def flatten(mask: Mask) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            return tuple(getattr(mask, name) for name in leaves), tuple(getattr(mask, name) for name in rest)

        def unflatten(values: tuple[Any, ...], children: tuple[Any, ...]) -> Mask:
            return cls(**dict(zip(leaves, children)), **dict(zip(rest, values)))

        jax.tree_util.register_pytree_node(cls, flatten, unflatten)
        return cls

    return register


@_description()
@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """Every query attends to every key."""

    def block(self, rows: Span, columns: Span) -> None:
        return None


@_description()
@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Query t attends to keys 0..t."""

    def block(self, rows: Span, columns: Span) -> jax.Array | None:
        known = isinstance(rows.start, int) and isinstance(columns.start, int)
        if known and columns.start + columns.size <= rows.start + 1:
            return None
        return rows.numbers()[:, None] >= columns.numbers()


@_description("length")
@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """Every query attends to the keys before `length` (int, or int32 [B]); the rest is causal."""

    length: Any

    def block(self, rows: Span, columns: Span) -> jax.Array:
        length = jnp.asarray(self.length).reshape(-1, 1, 1, 1)
        return (rows.numbers()[:, None] >= columns.numbers()) | (columns.numbers() < length)


@_description()
@dataclasses.dataclass(frozen=True)
class Sliding(Mask):
    """Local attention: causal, the last `window` keys (itself among them); symmetric, keys nearer than `window`."""

    window: int
    causal: bool = True

    def block(self, rows: Span, columns: Span) -> jax.Array:
        distance = rows.numbers()[:, None] - columns.numbers()
        near = distance < self.window
        return near & (distance >= 0 if self.causal else distance > -self.window)


@_description("allowed")
@dataclasses.dataclass(frozen=True)
class Blocks(Mask):
    """Block-sparse attention (Child et al. 2019): of blocks of `size` tokens, each query block sees some key blocks.

    `allowed` is bool [T / size, S / size], rounded up.
    """

    size: int
    allowed: jax.Array

    def block(self, rows: Span, columns: Span) -> jax.Array:
        seen = jnp.take(self.allowed, rows.numbers() // self.size, axis=0, mode="clip")
        return jnp.take(seen, columns.numbers() // self.size, axis=1, mode="clip")


@_description("q_ids", "kv_ids")
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Packed sequences: a query attends to keys of its segment. Segment 0 is padding, neither query nor key.

    q_ids int [B, T]; kv_ids int [B, S]; None: q_ids.
    """

    q_ids: jax.Array
    kv_ids: jax.Array | None = None

    def block(self, rows: Span, columns: Span) -> jax.Array:
        q_BxT = rows.of(self.q_ids, 1)
        kv_BxS = columns.of(self.q_ids if self.kv_ids is None else self.kv_ids, 1)
        same = q_BxT[:, :, None] == kv_BxS[:, None, :]
        return (same & (kv_BxS != 0)[:, None, :])[:, None]


@_description("valid")
@dataclasses.dataclass(frozen=True)
class Keys(Mask):
    """Padding: queries attend only to keys with `valid` (bool [B, S])."""

    valid: jax.Array

    def block(self, rows: Span, columns: Span) -> jax.Array:
        return columns.of(self.valid, 1)[:, None, None].astype(bool)


@_description("array")
@dataclasses.dataclass(frozen=True)
class Given(Mask):
    """The pairs of an array, bool [B or 1, 1, T, S]; used with a cache, whose queries begin at a traced position."""

    array: jax.Array

    def block(self, rows: Span, columns: Span) -> jax.Array:
        return columns.of(rows.of(self.array, 2), 3)


@_description("parts")
@dataclasses.dataclass(frozen=True)
class All(Mask):
    """The pairs that every part allows; made by `&`."""

    parts: tuple[Mask, ...]

    def block(self, rows: Span, columns: Span) -> jax.Array | None:
        arrays = [a for a in (p.block(rows, columns) for p in self.parts) if a is not None]
        return functools.reduce(jnp.logical_and, arrays) if arrays else None


def parts_of(mask: Mask) -> tuple[Mask, ...]:
    """The descriptions whose conjunction `mask` is; none for `Full`."""
    return mask.parts if isinstance(mask, All) else () if isinstance(mask, Full) else (mask,)


def is_causal(mask: Mask) -> bool:
    """Returns True if the mask is known to forbid every key after its query."""
    return any(isinstance(p, Causal) or (isinstance(p, Sliding) and p.causal) for p in parts_of(mask))


def may_be_empty(mask: Mask) -> bool:
    """Returns True if a query may have no key at all; kernels must then return zeros for it."""
    return any(isinstance(p, Segments | Keys | Blocks | Given) for p in parts_of(mask))


def key_count(mask: Mask, queries: int) -> int:
    """Number of keys that a mask describes: the width of a `Given` array, else as many as there are queries."""
    given = [part.array.shape[-1] for part in parts_of(mask) if isinstance(part, Given)]
    return given[0] if given else queries


def materialize(mask: Mask, q_len: int, kv_len: int) -> jax.Array:
    """The mask as bool [B or 1, 1, q_len, kv_len], True = may attend."""
    array = mask.block(Span(0, q_len), Span(0, kv_len))
    if array is None:
        return jnp.ones((1, 1, q_len, kv_len), bool)
    array = array.reshape((1,) * (4 - array.ndim) + array.shape)
    return jnp.broadcast_to(array, (array.shape[0], 1, q_len, kv_len))
