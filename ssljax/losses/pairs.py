"""Reductions over the negatives of each example: in one matrix, in blocks, or around a ring of devices.

A contrastive loss of B examples reduces B x B logits x_i . y_j along rows and columns, without the pairs of one
example. Three forms give equal numbers:

- "dense" stores the matrix of logits; the backward pass reads it.
- "chunked" computes the matrix block by block, and again in the backward pass; it stores none of it. On several devices
  each has the rows of its x and gathers all y.
- "ring" is "chunked" with y that travel from device to device, together with the sums of their columns and, in the
  backward pass, with their gradients. A device never has the y of more than two devices.

From the sums of its rows and columns, the gradient of a block follows without other blocks. The idea is that of
FlashAttention (Dao et al. 2022); Cheng et al. 2024, "Breaking the Memory Barrier: Near Infinite Batch Size Scaling for
Contrastive Loss" (Inf-CL), use it for CLIP on a ring of devices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.losses.reduction import EXACT, NEG_INF

Form = Literal["dense", "chunked", "ring"]

CHUNK = 1024
"""Largest number of rows and of columns of a block of logits."""


class Side(NamedTuple):
    """One side of the pairs, such as the images of a batch."""

    z: jax.Array  # float32 [n, D], finite
    example: jax.Array  # int32 [n], number of the example in the global batch; -1: padding, which has no pairs
    offset: jax.Array | None = None  # float32 [n], added to the logits of a row


class Negatives(NamedTuple):
    """Reduction of the logits of each row (or column) over its negatives, float32 [n]."""

    value: jax.Array
    largest: jax.Array  # largest logit, without gradient; -1e30 without negatives


class Partial(NamedTuple):
    """Reduction of a part of the logits of each row (or column)."""

    largest: jax.Array
    total: jax.Array


class LogSumExp:
    """log sum exp(logit), for losses with a softmax."""

    @staticmethod
    def whole(logits: jax.Array, axis: int) -> jax.Array:
        return jax.nn.logsumexp(logits, axis)

    @staticmethod
    def part(logits: jax.Array, axis: int) -> Partial:
        largest = jnp.max(logits, axis, keepdims=True)
        return Partial(jnp.squeeze(largest, axis), jnp.sum(jnp.exp(logits - largest), axis))

    @staticmethod
    def merge(a: Partial, b: Partial) -> Partial:
        largest = jnp.maximum(a.largest, b.largest)
        return Partial(largest, a.total * jnp.exp(a.largest - largest) + b.total * jnp.exp(b.largest - largest))

    @staticmethod
    def value(part: Partial) -> jax.Array:
        return part.largest + jnp.log(part.total)

    @staticmethod
    def slope(logits: jax.Array, value: jax.Array) -> jax.Array:
        """Derivative of the value with respect to the logits."""
        return jnp.exp(logits - value)


class SumSoftplus:
    """Sum of log(1 + exp(logit)), for losses with a sigmoid."""

    @staticmethod
    def whole(logits: jax.Array, axis: int) -> jax.Array:
        return jnp.sum(jax.nn.softplus(logits), axis)

    @staticmethod
    def part(logits: jax.Array, axis: int) -> Partial:
        return Partial(jnp.max(logits, axis), jnp.sum(jax.nn.softplus(logits), axis))

    @staticmethod
    def merge(a: Partial, b: Partial) -> Partial:
        return Partial(jnp.maximum(a.largest, b.largest), a.total + b.total)

    @staticmethod
    def value(part: Partial) -> jax.Array:
        return part.total

    @staticmethod
    def slope(logits: jax.Array, value: jax.Array) -> jax.Array:
        """Derivative of the value with respect to the logits."""
        return jax.nn.sigmoid(logits)


Reduction = type[LogSumExp] | type[SumSoftplus]
Block = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def negatives_of(
    reduction: Reduction, x: Side, y: Side | None, *, form: Form, axis_name: Any = None, chunk: int = CHUNK
) -> tuple[Negatives, Negatives | None]:
    """Reduces the logits x_i . y_j + offset_i of each row i and of each column j over pairs of different examples.

    Args:
        reduction: `LogSumExp` or `SumSoftplus`.
        x: the rows, [n, D].
        y: the columns, [m, D]; None: the columns are x, which has no offset, and the result is that of the rows alone.
        form: see the module.
        axis_name: mesh axis, or tuple of mesh axes, over which the examples are split, inside a `shard_map`; x and y
            are then those of this device. None: x and y are those of all examples.
        chunk: largest number of rows and of columns of a block.

    Returns:
        (negatives of the rows [n], negatives of the columns [m] or None).

    Raises:
        UserError: the dense form with an `axis_name`.
    """
    if form == "dense":
        if axis_name is not None:
            raise UserError(f"form: got 'dense' with axis_name {axis_name!r}, must be 'chunked' or 'ring'")
        logits = _logits(x, x if y is None else y)
        return _whole(reduction, logits, 1), None if y is None else _whole(reduction, logits, 0)
    plan = _Plan(reduction, axis_name, form == "ring")
    rows, columns = _reduced(plan, _blocks(x, chunk), None if y is None else _blocks(y, chunk))
    return _joined(rows, x), None if y is None else _joined(columns, y)


def _whole(reduction: Reduction, logits: jax.Array, axis: int) -> Negatives:
    return Negatives(reduction.whole(logits, axis), jax.lax.stop_gradient(jnp.max(logits, axis)))


def _logits(x: Side, y: Side) -> jax.Array:
    """Logits [n, m]; -1e30 for the pairs of one example and of padding."""
    logits = jnp.matmul(x.z, y.z.T, precision=EXACT)
    if x.offset is not None:
        logits = logits + x.offset[:, None]
    row, column = x.example[:, None], y.example[None, :]
    return jnp.where((row != column) & (row >= 0) & (column >= 0), logits, NEG_INF)


def _blocks(side: Side, chunk: int) -> Side:
    """Cuts n vectors into blocks of equal size, [n, ...] -> [blocks, size, ...]; the last one is padded."""
    n = side.example.shape[0]
    count = math.ceil(n / chunk)
    size = math.ceil(n / count)

    def cut(a: jax.Array, fill: int = 0) -> jax.Array:
        padding = ((0, count * size - n), *((0, 0) for _ in a.shape[1:]))
        return jnp.pad(a, padding, constant_values=fill).reshape(count, size, *a.shape[1:])

    return Side(cut(side.z), cut(side.example, -1), None if side.offset is None else cut(side.offset))


def _joined(found: Any, side: Side) -> Any:
    """The inverse of `_blocks` for arrays of one number per vector."""
    return jax.tree.map(lambda a: a.reshape(-1)[: side.example.shape[0]], found)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Static settings of a reduction in blocks."""

    reduction: Reduction
    axis_name: Any  # None: all examples are here
    ring: bool  # False: columns are gathered

    @property
    def gathers(self) -> bool:
        return self.axis_name is not None and not self.ring

    def gather(self, tree: Any) -> Any:
        """The blocks of all devices, in the order of the devices."""
        return jax.tree.map(lambda a: jax.lax.all_gather(a, self.axis_name, tiled=True), tree)

    def send(self, tree: Any) -> Any:
        """Sends arrays to the next device of the ring."""
        size = jax.lax.axis_size(self.axis_name)
        ring = [(i, (i + 1) % size) for i in range(size)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axis_name, ring), tree)

    def filled(self, shape: tuple[int, ...], value: float = 0.0) -> jax.Array:
        """A constant array. It counts as different on each device, like the sums for which it is the start."""
        array = jnp.full(shape, value)
        return array if self.axis_name is None else jax.lax.pcast(array, self.axis_name, to="varying")

    def nothing(self, side: Side) -> Partial:
        """The reduction of no logits."""
        shape = side.example.shape
        return Partial(self.filled(shape, NEG_INF), self.filled(shape))


def _visit(plan: _Plan, block: Block, rows: Any, columns: Any, row_sums: Any, column_sums: Any) -> tuple[Any, Any]:
    """Applies `block` to all pairs of blocks, on a ring also to pairs with columns of other devices.

    Args:
        plan: the settings.
        block: (row block, column block, sums of the rows, sums of the columns) -> both sums with this pair added.
        rows, columns: what `block` reads, [blocks, ...]; columns travel around a ring.
        row_sums, column_sums: what `block` changes; sums of columns travel with them and come back.
    """
    if not plan.ring or plan.axis_name is None:
        return _visit_local(block, rows, columns, row_sums, column_sums)

    def hop(carry: Any, _: Any) -> tuple[Any, None]:
        columns, row_sums, column_sums = carry
        following = plan.send(columns)  # sent first, so that columns travel while the device computes
        row_sums, column_sums = _visit_local(block, rows, columns, row_sums, column_sums)
        return (following, row_sums, plan.send(column_sums)), None

    hops = jax.lax.axis_size(plan.axis_name) - 1
    (columns, row_sums, column_sums), _ = jax.lax.scan(hop, (columns, row_sums, column_sums), length=hops)
    row_sums, column_sums = _visit_local(block, rows, columns, row_sums, column_sums)
    return row_sums, plan.send(column_sums)


def _visit_local(block: Block, rows: Any, columns: Any, row_sums: Any, column_sums: Any) -> tuple[Any, Any]:
    count, others = (len(jax.tree.leaves(tree)[0]) for tree in (rows, columns))

    def step(k: jax.Array, sums: tuple[Any, Any]) -> tuple[Any, Any]:
        i, j = k % count, k // count
        row_sums, column_sums = sums
        added = block(_at(rows, i), _at(columns, j), _at(row_sums, i), _at(column_sums, j))
        return _replaced(row_sums, i, added[0]), _replaced(column_sums, j, added[1])

    return jax.lax.fori_loop(0, count * others, step, (row_sums, column_sums))


def _at(tree: Any, i: jax.Array | int) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), tree)


def _replaced(tree: Any, i: jax.Array, block: Any) -> Any:
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, i, 0), tree, block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reduced(plan: _Plan, x: Side, y: Side | None) -> tuple[Negatives, Negatives | None]:
    return _forward(plan, x, y)[0]


def _forward(plan: _Plan, x: Side, y: Side | None) -> Any:
    """Returns the result, and what the backward pass reads: no logits, but all y if they were gathered."""
    reduction = plan.reduction

    def block(x: Side, y: Side, row: Partial, column: Partial | None) -> tuple[Partial, Partial | None]:
        logits = _logits(x, y)
        row = reduction.merge(row, reduction.part(logits, 1))
        return row, None if column is None else reduction.merge(column, reduction.part(logits, 0))

    columns = x if y is None else y
    columns = plan.gather(columns) if plan.gathers else columns
    rows, sums = _visit(plan, block, x, columns, plan.nothing(x), None if y is None else plan.nothing(columns))
    sums = _own(plan, sums) if plan.gathers else sums
    found = tuple(None if s is None else Negatives(reduction.value(s), s.largest) for s in (rows, sums))
    return found, (x, y, columns, found)


def _own(plan: _Plan, sums: Partial | None) -> Partial | None:
    """Merges the sums of all devices for the columns of this device."""
    size = jax.lax.axis_size(plan.axis_name)
    parts = jax.tree.map(lambda a: a.reshape(size, -1, *a.shape[1:]), sums)
    parts = jax.tree.map(lambda a: jax.lax.all_to_all(a, plan.axis_name, 0, 0), parts)
    add = lambda a, b: (plan.reduction.merge(a, b), None)  # noqa: E731
    return None if sums is None else jax.lax.scan(add, _at(parts, 0), jax.tree.map(lambda a: a[1:], parts))[0]


def _backward(plan: _Plan, residuals: Any, cotangents: Any) -> tuple[Side, Side | None]:
    """The gradients of x and y from the derivative of each logit.

    The derivative has a part from the row and a part from the column. Without y, each pair occurs in two rows, as
    (i, j) and (j, i); the second part is then the derivative of the logit (j, i), and the product with the columns
    alone is the whole gradient.
    """
    x, y, columns, found = residuals
    given = [None if f is None else (f.value, c.value) for f, c in zip(found, cotangents)]
    of_columns = given[0] if y is None else given[1]
    of_columns = plan.gather(of_columns) if plan.gathers else of_columns

    def block(row: Any, column: Any, dx: Any, dy: Any) -> tuple[Any, Any]:
        (x, (row_value, row_cotangent)), (y, (column_value, column_cotangent)) = row, column
        logits = _logits(x, y)
        slope = row_cotangent[:, None] * plan.reduction.slope(logits, row_value[:, None])
        slope += column_cotangent[None, :] * plan.reduction.slope(logits, column_value[None, :])
        slope = jnp.where(logits > NEG_INF / 2, slope, 0.0)
        dz, doffset = dx
        dz = dz + jnp.matmul(slope, y.z, precision=EXACT)
        doffset = None if doffset is None else doffset + slope.sum(1)
        return (dz, doffset), None if dy is None else dy + jnp.matmul(slope.T, x.z, precision=EXACT)

    dx = (plan.filled(x.z.shape), None if x.offset is None else plan.filled(x.offset.shape))
    dy = None if y is None else plan.filled(columns.z.shape)
    (dz, doffset), dy = _visit(plan, block, (x, given[0]), (columns, of_columns), dx, dy)
    if plan.gathers and y is not None:
        dy = jax.lax.psum_scatter(dy, plan.axis_name, tiled=True)
    none: Any = None  # the gradient of integers
    return Side(dz, none, doffset), None if y is None else Side(dy, none)


_reduced.defvjp(_forward, _backward)
