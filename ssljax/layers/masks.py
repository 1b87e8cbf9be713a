"""Attention masks: descriptions of the allowed (query, key) pairs, instead of arrays.

A mask is a small pytree. Arrays inside it (lengths, segment ids) are leaves, so they may be traced. `a & b` allows the
pairs that both masks allow. Queries and keys are numbered from 0; in self-attention, query t and key t are the same
token. `materialize` makes an array for kernels that need one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp


class Span(NamedTuple):
    """A range of consecutive queries or keys."""

    start: Any  # int, may be traced
    size: int

    def numbers(self) -> jax.Array:
        """The indices, int [size]."""
        return self.start + jnp.arange(self.size)

    def of(self, x: jax.Array, axis: int) -> jax.Array:
        """The slice of an axis of x. Past the end of the axis it repeats the last element; callers must mask these."""
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
        """The allowed pairs of a block: bool, broadcastable to [B, 1, rows.size, columns.size]; None: all pairs.

        Args:
            rows: the queries of the block.
            columns: the keys of the block.
        """
        raise NotImplementedError


Described = TypeVar("Described", bound=type[Mask])


def _description(*leaves: str) -> Callable[[Described], Described]:
    """Registers a dataclass as a pytree: the named fields are leaves; its class and other fields are the structure.

    `jax.tree_util.register_dataclass` is not used because it leaves the class out of the comparison (jaxlib 0.10): two
    masks of different classes with equal fields then compare equal, and about once in a hundred calls `jit` reuses the
    program of the wrong mask.
    """

    def register(cls: Described) -> Described:
        static = [f.name for f in dataclasses.fields(cls) if f.name not in leaves]  # type: ignore[arg-type]

        def flatten(mask: Mask) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            return tuple(getattr(mask, name) for name in leaves), tuple(getattr(mask, name) for name in static)

        def unflatten(values: tuple[Any, ...], children: tuple[Any, ...]) -> Mask:
            return cls(**dict(zip(leaves, children)), **dict(zip(static, values)))

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
        static = isinstance(rows.start, int) and isinstance(columns.start, int)
        if static and columns.start + columns.size <= rows.start + 1:
            return None
        return rows.numbers()[:, None] >= columns.numbers()


@_description("length")
@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """Prefix language modelling: queries attend to the first `length` keys (int, or int32 [B]) and to keys 0..t."""

    length: Any

    def block(self, rows: Span, columns: Span) -> jax.Array:
        length = jnp.asarray(self.length).reshape(-1, 1, 1, 1)
        return (rows.numbers()[:, None] >= columns.numbers()) | (columns.numbers() < length)


@_description()
@dataclasses.dataclass(frozen=True)
class Sliding(Mask):
    """Local attention: query t attends to keys at a distance of less than `window`."""

    window: int
    causal: bool = True  # True: keys t - window + 1..t only; False: on both sides

    def block(self, rows: Span, columns: Span) -> jax.Array:
        distance = rows.numbers()[:, None] - columns.numbers()
        near = distance < self.window
        return near & (distance >= 0 if self.causal else distance > -self.window)


@_description("allowed")
@dataclasses.dataclass(frozen=True)
class Blocks(Mask):
    """Block-sparse attention (Child et al. 2019): pairs are allowed by blocks of `size` tokens."""

    size: int
    allowed: jax.Array  # bool [ceil(T / size), ceil(S / size)], (query block, key block)

    def block(self, rows: Span, columns: Span) -> jax.Array:
        allowed = jnp.take(self.allowed, rows.numbers() // self.size, axis=0, mode="clip")
        return jnp.take(allowed, columns.numbers() // self.size, axis=1, mode="clip")


@_description("q_ids", "kv_ids")
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Packed sequences: a query attends to the keys of its segment. Segment 0 is padding, which no pair includes."""

    q_ids: jax.Array  # int [B, T]
    kv_ids: jax.Array | None = None  # int [B, S]; None: q_ids

    def block(self, rows: Span, columns: Span) -> jax.Array:
        q_BxT = rows.of(self.q_ids, 1)
        kv_BxS = columns.of(self.q_ids if self.kv_ids is None else self.kv_ids, 1)
        same = q_BxT[:, :, None] == kv_BxS[:, None, :]
        return (same & (kv_BxS != 0)[:, None, :])[:, None]


@_description("valid")
@dataclasses.dataclass(frozen=True)
class Keys(Mask):
    """Padding: queries attend only to valid keys."""

    valid: jax.Array  # bool [B, S]

    def block(self, rows: Span, columns: Span) -> jax.Array:
        return columns.of(self.valid, 1)[:, None, None].astype(bool)


@_description("array")
@dataclasses.dataclass(frozen=True)
class Given(Mask):
    """An explicit array of allowed pairs; used with a cache, where the first query has a traced position."""

    array: jax.Array  # bool [B or 1, 1, T, S]

    def block(self, rows: Span, columns: Span) -> jax.Array:
        return columns.of(rows.of(self.array, 2), 3)


@_description("mask", "rows", "columns")
@dataclasses.dataclass(frozen=True)
class Shifted(Mask):
    """A part of a mask: its queries from number `rows` on, its keys from number `columns` on."""

    mask: Mask
    rows: Any  # int, may be traced
    columns: Any

    def block(self, rows: Span, columns: Span) -> jax.Array | None:
        moved = Span(self.rows + rows.start, rows.size), Span(self.columns + columns.start, columns.size)
        return self.mask.block(*moved)


@_description("parts")
@dataclasses.dataclass(frozen=True)
class All(Mask):
    """The conjunction of masks, as `&` returns it: the pairs that every part allows."""

    parts: tuple[Mask, ...]

    def block(self, rows: Span, columns: Span) -> jax.Array | None:
        arrays = [a for a in (p.block(rows, columns) for p in self.parts) if a is not None]
        return functools.reduce(jnp.logical_and, arrays) if arrays else None


def parts_of(mask: Mask) -> tuple[Mask, ...]:
    """The masks whose conjunction is `mask`; the empty tuple for `Full`."""
    return mask.parts if isinstance(mask, All) else () if isinstance(mask, Full) else (mask,)


def is_causal(mask: Mask) -> bool:
    """Returns True if a part of the mask forbids all keys after the query."""
    return any(isinstance(p, Causal) or (isinstance(p, Sliding) and p.causal) for p in parts_of(mask))


def may_be_empty(mask: Mask) -> bool:
    """Returns True if some query may have no allowed key; kernels must then return 0 for that query."""
    return any(isinstance(p, Segments | Keys | Blocks | Given) for p in parts_of(mask))


def key_count(mask: Mask, queries: int) -> int:
    """Number of keys that a mask describes: the last axis of a `Given` array, else the number of queries."""
    widths = [part.array.shape[-1] for part in parts_of(mask) if isinstance(part, Given)]
    return widths[0] if widths else queries


def materialize(mask: Mask, q_len: int, kv_len: int) -> jax.Array:
    """The mask as an array, bool [B or 1, 1, q_len, kv_len]; True = allowed."""
    array = mask.block(Span(0, q_len), Span(0, kv_len))
    if array is None:
        return jnp.ones((1, 1, q_len, kv_len), bool)
    array = array.reshape((1,) * (4 - array.ndim) + array.shape)
    return jnp.broadcast_to(array, (array.shape[0], 1, q_len, kv_len))
