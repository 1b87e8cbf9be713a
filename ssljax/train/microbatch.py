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
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssljax.objectives.base import Ctx, Loss, Objective, total

TotalLoss = Callable[[Any], jax.Array]  # terms of a loss -> the value to differentiate


class Gradients(NamedTuple):
    """The result of `gradients`."""

    grads: Any  # a tree like the parameters
    value: jax.Array  # float32 scalar, the loss
    loss: Loss  # terms, metrics, sums and rows of the whole batch


def gradients(
    objective: Objective,
    params: Any,
    extra: Any,
    inputs: Any,
    ctx: Ctx,
    slices: int,
    scale: jax.Array | None = None,
) -> Gradients:
    """Computes the loss of a batch and its gradients with respect to the parameters.

    Args:
        objective: an objective with its model.
        params, extra: the variables of the objective.
        inputs: the result of `objective.views`; every leaf is [B, ...], B a multiple of `slices`.
        ctx: context of the step, with the rows of the batch.
        slices: number of slices.
        scale: loss scale for float16, which rounds small gradients to 0: the loss is multiplied by it before
            differentiation, the gradients are divided by it (Micikevicius et al. 2018, section 3.2); None: 1.
    """
    method = _whole if slices == 1 else _coupled if objective.coupled else _uncoupled
    if scale is None:
        return method(objective, params, extra, inputs, ctx, slices, total)
    grads, value, loss = method(objective, params, extra, inputs, ctx, slices, lambda terms: scale * total(terms))
    return Gradients(jax.tree.map(lambda g: g / scale, grads), value / scale, loss)


def _whole(
    objective: Objective, params: Any, extra: Any, inputs: Any, ctx: Ctx, slices: int, total_loss: TotalLoss
) -> Gradients:
    def value(params: Any) -> tuple[jax.Array, Loss]:
        loss = objective.loss(params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx)
        return total_loss(loss.terms), loss

    (loss_value, loss), grads = jax.value_and_grad(value, has_aux=True)(params)
    return Gradients(grads, loss_value, loss)


def _uncoupled(
    objective: Objective, params: Any, extra: Any, inputs: Any, ctx: Ctx, slices: int, total_loss: TotalLoss
) -> Gradients:
    # Only weights and coefficients of this pass are used, so its encoder is dead code.
    whole = objective.loss(params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx)
    weights = {name: jax.lax.stop_gradient(weight) for name, (_, _, weight) in whole.terms.items()}

    def slice_gradients(inputs_row: tuple[Any, jax.Array]) -> tuple[Any, Any]:
        inputs, row = inputs_row
        slice_ctx = ctx.replace(row=row)

        def value(params: Any) -> tuple[jax.Array, Loss]:
            outputs = objective.encode(params, extra, inputs, slice_ctx)
            loss = objective.loss(params, extra, outputs, inputs, slice_ctx)
            return total_loss({name: (c, s, weights[name]) for name, (c, s, _) in loss.terms.items()}), loss

        (part, loss), grads = jax.value_and_grad(value, has_aux=True)(params)
        term_sums = {name: s for name, (_, s, _) in loss.terms.items()}
        return (grads, part, term_sums, loss.metrics, loss.sums), loss.rows

    slices_of_batch = (split(inputs, slices), split(ctx.row, slices))
    (grads, value, term_sums, metrics, sums), rows = _scan_sum(slice_gradients, slices_of_batch)
    terms = {name: (c, term_sums[name], weights[name]) for name, (c, _, _) in whole.terms.items()}
    return Gradients(grads, value, Loss(terms, metrics, sums, join(rows)))


def _coupled(
    objective: Objective, params: Any, extra: Any, inputs: Any, ctx: Ctx, slices: int, total_loss: TotalLoss
) -> Gradients:
    slices_of_batch = (split(inputs, slices), split(ctx.row, slices))

    def encode(params: Any, inputs_row: tuple[Any, jax.Array]) -> Any:
        inputs, row = inputs_row
        return objective.encode(params, extra, inputs, ctx.replace(row=row))

    outputs = join(jax.lax.map(lambda inputs_row: encode(params, inputs_row), slices_of_batch))

    def value(params: Any, outputs: Any) -> tuple[jax.Array, Loss]:
        loss = objective.loss(params, extra, outputs, inputs, ctx)
        return total_loss(loss.terms), loss

    (loss_value, loss), (grads, cotangents) = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, outputs)

    def pull_back(slice_and_cotangent: tuple[Any, Any]) -> tuple[Any, Any]:
        inputs_row, cotangent = slice_and_cotangent
        _, vjp = jax.vjp(lambda p: encode(p, inputs_row), params)
        return vjp(cotangent)[0], ()

    encoder_grads, _ = _scan_sum(pull_back, (slices_of_batch, split(cotangents, slices)))
    return Gradients(jax.tree.map(jnp.add, grads, encoder_grads), loss_value, loss)


def split(tree: Any, slices: int) -> Any:
    """Splits a batch into k slices: [B, ...] -> [k, B/k, ...].

    Example i goes to slice i mod k, so each device splits the rows that it holds, without communication.
    """
    return jax.tree.map(lambda x: x.reshape(-1, slices, *x.shape[1:]).swapaxes(0, 1), tree)


def join(tree: Any) -> Any:
    """The inverse of `split`: [k, B/k, ...] -> [B, ...], in batch order."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def _scan_sum(f: Callable[[Any], tuple[Any, Any]], xs: Any) -> tuple[Any, Any]:
    """Maps f over the leading axis of `xs`; returns (sum of the first results, stack of the second results).

    Sums of floating point numbers are kept in float32 at least and converted to the type of f's result at the end.
    """
    shapes, _ = jax.eval_shape(f, jax.tree.map(lambda x: x[0], xs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, _sum_type(s.dtype)), shapes)

    def body(carry: Any, x: Any) -> tuple[Any, Any]:
        added, stacked = f(x)
        return jax.tree.map(lambda total, part: total + part.astype(total.dtype), carry, added), stacked

    sums, stacked = jax.lax.scan(body, zeros, xs)
    return jax.tree.map(lambda total, s: total.astype(s.dtype), sums, shapes), stacked


def _sum_type(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
