"""Exact loss and gradients of a batch that is encoded in k slices.

Exact means equal up to the rounding of the compute type. In float32 that is about 1e-6 of a gradient; in bfloat16, in
which every slice rounds its gradient of a weight, it is some per cent. Sums over slices are kept in float32.

Averaging the losses of slices is wrong if slices have different weights (numbers of tokens, for example), and if the
loss compares examples of different slices. Therefore:

- Uncoupled objectives: first the weights of the whole batch are computed; they depend on inputs only, so XLA removes
  the encoder from this pass. Then sums and gradients are added over slices, divided by these weights.
- Coupled objectives: slices are encoded one after another without gradients, and the loss of the whole batch is
  differentiated with respect to the outputs. Then each slice is encoded again, and its cotangents are pulled back to
  the parameters (Gao et al. 2021, gradient cache).

The batch is cut before its views are made, so the views of one slice are in memory at a time. Where a pass over the
whole batch needs inputs (masks for weights, for example), XLA removes all others, such as pixels.

On a mesh, XLA would sum the gradients over devices in every slice. Over mesh axes whose devices hold parameters and
gradients whole, each device therefore adds up the gradients of its own rows (`shard_map`), and they are summed over
devices once, after the last slice.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.objectives.base import Ctx, Loss, Objective, total
from ssljax.parallel.rules import free_sizes

InputsOf = Callable[[Any, jax.Array], Any]  # (batch or slice of it, rows int32 [B] of its examples) -> inputs
TotalLoss = Callable[[Any], jax.Array]  # terms of a loss -> the value to differentiate


class Parts(NamedTuple):
    """Gradients of the parts of a batch: its slices, or the rows of a slice on one device.

    The gradient of a part is that of the sum over its examples times `number`, so their mean is that of the batch.
    """

    number: int
    square: jax.Array  # float32 scalar, mean over parts of the squared norm


class Gradients(NamedTuple):
    """The result of `gradients`."""

    grads: Any  # a tree like the parameters
    value: jax.Array  # float32 scalar, the loss
    loss: Loss  # terms, metrics, sums and rows of the whole batch
    parts: Parts | None = None  # None: one slice, or a loss that compares examples


class _Call(NamedTuple):
    """The arguments of `gradients`, apart from arrays that are differentiated or cut."""

    objective: Objective
    inputs_of: InputsOf
    ctx: Ctx
    slices: int
    axes: tuple[str, ...]
    trained: Callable[[Any], Any]
    total_loss: TotalLoss


class _Batch(NamedTuple):
    """A batch, or a stack of its slices, and the rows of its examples in the whole batch."""

    data: Any
    row: jax.Array


def gradients(
    objective: Objective,
    params: Any,
    extra: Any,
    batch: Any,
    inputs_of: InputsOf,
    ctx: Ctx,
    slices: int,
    scale: jax.Array | None = None,
    axes: tuple[str, ...] = (),
    trained: Callable[[Any], Any] = lambda grads: grads,
) -> Gradients:
    """Computes the loss of a batch and its gradients with respect to the parameters.

    Args:
        objective: an objective with its model.
        params, extra: the variables of the objective.
        batch: the batch of the data, [B, ...], B a multiple of `slices`; further streams in it have a multiple of B.
        inputs_of: makes the inputs (`objective.views`) of a slice; those of an example must not depend on the slice.
        ctx: context of the step, with the rows of the batch.
        slices: number of slices.
        scale: loss scale for float16, which rounds small gradients to 0: the loss is multiplied by it before
            differentiation, the gradients are divided by it (Micikevicius et al. 2018, section 3.2); None: 1.
        axes: mesh axes that split the rows of a slice and neither parameters nor gradients, the first axes of the
            batch: gradients are summed over them once.
        trained: sets gradients that do not count in norms to 0.

    Raises:
        UserError: a stream has a number of rows that is not a multiple of the batch's.
    """
    method = _whole if slices == 1 else _coupled if objective.coupled else _uncoupled
    call = _Call(objective, inputs_of, ctx, slices, axes, trained, total)
    if scale is None:
        return method(call, params, extra, batch)
    call = call._replace(total_loss=lambda terms: scale * total(terms))
    grads, value, loss, parts = method(call, params, extra, batch)
    if parts is not None:
        parts = parts._replace(square=parts.square / scale**2)
    return Gradients(jax.tree.map(lambda g: g / scale, grads), value / scale, loss, parts)


def _whole(call: _Call, params: Any, extra: Any, batch: Any) -> Gradients:
    objective, ctx = call.objective, call.ctx
    inputs = call.inputs_of(batch, ctx.row)

    def value(params: Any) -> tuple[jax.Array, Loss]:
        loss = objective.loss(params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx)
        return call.total_loss(loss.terms), loss

    (loss_value, loss), grads = jax.value_and_grad(value, has_aux=True)(params)
    return Gradients(grads, loss_value, loss)


def _uncoupled(call: _Call, params: Any, extra: Any, batch: Any) -> Gradients:
    objective, inputs_of, ctx, slices, axes, trained, total_loss = call
    # Only weights and coefficients of this pass are used, so its encoder and most of its views are dead code.
    inputs = inputs_of(batch, ctx.row)
    whole = objective.loss(params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx)
    weights = {name: jax.lax.stop_gradient(weight) for name, (_, _, weight) in whole.terms.items()}

    def slice_gradients(part: _Batch, shared: Any) -> tuple[Any, Any]:
        params, extra, weights = shared
        inputs, slice_ctx = inputs_of(*part), ctx.replace(row=part.row)

        def value(params: Any) -> tuple[jax.Array, Loss]:
            outputs = objective.encode(params, extra, inputs, slice_ctx)
            loss = objective.loss(params, extra, outputs, inputs, slice_ctx)
            return total_loss({name: (c, s, weights[name]) for name, (c, s, _) in loss.terms.items()}), loss

        (part_value, loss), grads = jax.value_and_grad(value, has_aux=True)(params)
        term_sums = {name: s for name, (_, s, _) in loss.terms.items()}
        square = jnp.square(optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), trained(grads))))
        return (grads, part_value, square, term_sums, loss.metrics, loss.sums), loss.rows

    parts = split(_Batch(batch, ctx.row), slices)
    (grads, value, square, term_sums, metrics, sums), rows = _scan_sum(
        slice_gradients, parts, (params, extra, weights), axes
    )
    terms = {name: (c, term_sums[name], weights[name]) for name, (c, _, _) in whole.terms.items()}
    number = slices * math.prod(free_sizes()[axis] for axis in axes)
    return Gradients(grads, value, Loss(terms, metrics, sums, join(rows)), Parts(number, number * square))


def _coupled(call: _Call, params: Any, extra: Any, batch: Any) -> Gradients:
    objective, inputs_of, ctx, slices, axes, _, total_loss = call
    parts = split(_Batch(batch, ctx.row), slices)

    def encode(part: _Batch) -> tuple[Any, Any]:
        inputs = inputs_of(*part)
        return objective.encode(params, extra, inputs, ctx.replace(row=part.row)), inputs

    outputs, inputs = join(jax.lax.map(encode, parts))  # of the inputs, those that the loss reads are kept

    def value(params: Any, outputs: Any) -> tuple[jax.Array, Loss]:
        loss = objective.loss(params, extra, outputs, inputs, ctx)
        return total_loss(loss.terms), loss

    (loss_value, loss), (grads, cotangents) = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, outputs)

    def pull_back(part_and_cotangent: tuple[_Batch, Any], shared: Any) -> tuple[Any, Any]:
        part, cotangent = part_and_cotangent
        params, extra = shared
        inputs, slice_ctx = inputs_of(*part), ctx.replace(row=part.row)
        _, vjp = jax.vjp(lambda p: objective.encode(p, extra, inputs, slice_ctx), params)
        return vjp(cotangent)[0], ()

    encoder_grads, _ = _scan_sum(pull_back, (parts, split(cotangents, slices)), (params, extra), axes)
    return Gradients(jax.tree.map(jnp.add, grads, encoder_grads), loss_value, loss)


def split(tree: Any, slices: int) -> Any:
    """Splits a batch into k slices: [B, ...] -> [k, B/k, ...].

    Example i goes to slice i mod k, so each device splits the rows that it holds, without communication. A `_Batch` may
    have streams with m rows for each example: rows m i to m i + m - 1 go with example i.
    """
    rows = len(tree.row) if isinstance(tree, _Batch) else len(jax.tree.leaves(tree)[0])

    def cut(x: jax.Array) -> jax.Array:
        if len(x) % rows:
            raise UserError(
                f"microbatches: got {slices}, but a stream of the data has {len(x)} rows for {rows} examples "
                "(data.streams.NAME.ratio must be a whole number, or microbatches 1)"
            )
        groups = x.reshape(rows // slices, slices, len(x) // rows, *x.shape[1:]).swapaxes(0, 1)
        return groups.reshape(slices, len(x) // slices, *x.shape[1:])

    return jax.tree.map(cut, tree)


def join(tree: Any) -> Any:
    """The inverse of `split`: [k, B/k, ...] -> [B, ...], in batch order."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def _scan_sum(f: Callable[[Any, Any], tuple[Any, Any]], xs: Any, shared: Any, axes: tuple[str, ...]) -> tuple[Any, Any]:
    """Maps f(x, shared) over the leading axis of `xs`, [k, B/k, ...]; returns (sum of first, stack of second results).

    Sums of floating point numbers are kept in float32 at least and converted to the type of f's result at the end. Over
    the mesh axes `axes` each device maps f over its own rows, and the sums are added once.
    """

    def local(xs: Any, shared: Any) -> tuple[Any, Any]:
        shapes, _ = jax.eval_shape(f, jax.tree.map(lambda x: x[0], xs), shared)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, _sum_type(s.dtype)), shapes)

        def body(carry: Any, x: Any) -> tuple[Any, Any]:
            added, stacked = f(x, shared)
            return jax.tree.map(lambda total, part: total + part.astype(total.dtype), carry, added), stacked

        sums, stacked = jax.lax.scan(body, zeros, xs)
        if axes:
            sums = jax.lax.psum(sums, axes)
        return jax.tree.map(lambda total, s: total.astype(s.dtype), sums, shapes), stacked

    if not axes:
        return local(xs, shared)
    # Arrays are arguments: an array from outside has the type of the mesh outside, and could not be indexed.
    rows, whole = PartitionSpec(None, axes), PartitionSpec()
    options: dict[str, Any] = {"axis_names": set(axes), "check_vma": False}
    with nn.logical_axis_rules(parallel.activation_rules(taken=axes)):
        return jax.shard_map(local, in_specs=(rows, whole), out_specs=(whole, rows), **options)(xs, shared)


def _sum_type(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
