"""Loss and gradients of a batch in k slices, equal to those of the whole batch.

The mean over slices of their means is wrong if slices carry different weights, and no averaging is right for a loss
that compares examples with each other. Therefore:

- For an uncoupled objective the global weights are computed first, in a pass whose encoder the compiler drops (weights
  depend on inputs only). Sums and gradients are then added over slices under these weights.
- A coupled objective is encoded slice by slice without gradients. The loss of the whole batch is differentiated with
  respect to the outputs, and each slice is encoded again to pull its cotangents back (Gao et al. 2021, gradient
  cache).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssljax.objectives.base import Ctx, Loss, Objective, total

Total = Callable[[Any], jax.Array]  # of the terms of a loss


class Gradients(NamedTuple):
    """Gradients with respect to the parameters, the value of the loss, and what `Objective.loss` returned."""

    grads: Any
    value: jax.Array
    loss: Loss


def gradients(
    objective: Objective,
    params: Any,
    extra: Any,
    inputs: Any,
    ctx: Ctx,
    slices: int,
    scale: jax.Array | None = None,
) -> Gradients:
    """Loss and gradients of a batch of inputs.

    Args:
        objective: with its model.
        params, extra: its variables.
        inputs: from `objective.views`; leading axis B, a multiple of `slices`.
        ctx: key, step and rows of the batch.
        slices: number of slices.
        scale: the loss is multiplied by it before differentiation and the gradients are divided by it, since float16
            rounds small gradients of activations to 0 (Micikevicius et al. 2018, section 3.2).
    """
    method = _whole if slices == 1 else _coupled if objective.coupled else _uncoupled
    if scale is None:
        return method(objective, params, extra, inputs, ctx, slices, total)
    grads, value, loss = method(objective, params, extra, inputs, ctx, slices, lambda terms: scale * total(terms))
    return Gradients(jax.tree.map(lambda g: g / scale, grads), value / scale, loss)


def _whole(
    objective: Objective, params: Any, extra: Any, inputs: Any, ctx: Ctx, slices: int, total: Total
) -> Gradients:
    def value(params: Any) -> tuple[jax.Array, Loss]:
        loss = objective.loss(params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx)
        return total(loss.terms), loss

    (loss_value, loss), grads = jax.value_and_grad(value, has_aux=True)(params)
    return Gradients(grads, loss_value, loss)


def _uncoupled(
    objective: Objective, params: Any, extra: Any, inputs: Any, ctx: Ctx, slices: int, total: Total
) -> Gradients:
    # Only weights and coefficients leave this pass: its encoder is dead code.
    whole = objective.loss(params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx)
    weights = {name: jax.lax.stop_gradient(weight) for name, (_, _, weight) in whole.terms.items()}

    def one(cut: tuple[Any, jax.Array]) -> tuple[Any, Any]:
        inputs, row = cut

        def value(params: Any) -> tuple[jax.Array, Loss]:
            here = ctx.replace(row=row)
            loss = objective.loss(params, extra, objective.encode(params, extra, inputs, here), inputs, here)
            return total({name: (c, s, weights[name]) for name, (c, s, _) in loss.terms.items()}), loss

        (part, loss), grads = jax.value_and_grad(value, has_aux=True)(params)
        term_sums = {name: s for name, (_, s, _) in loss.terms.items()}
        return (grads, part, term_sums, loss.metrics, loss.sums), loss.rows

    (grads, value, term_sums, metrics, sums), rows = _scan_sum(one, (split(inputs, slices), split(ctx.row, slices)))
    terms = {name: (c, term_sums[name], weights[name]) for name, (c, _, _) in whole.terms.items()}
    return Gradients(grads, value, Loss(terms, metrics, sums, join(rows)))


def _coupled(
    objective: Objective, params: Any, extra: Any, inputs: Any, ctx: Ctx, slices: int, total: Total
) -> Gradients:
    cuts = (split(inputs, slices), split(ctx.row, slices))

    def encode(params: Any, cut: tuple[Any, jax.Array]) -> Any:
        inputs, row = cut
        return objective.encode(params, extra, inputs, ctx.replace(row=row))

    outputs = join(jax.lax.map(lambda cut: encode(params, cut), cuts))

    def value(params: Any, outputs: Any) -> tuple[jax.Array, Loss]:
        loss = objective.loss(params, extra, outputs, inputs, ctx)
        return total(loss.terms), loss

    (loss_value, loss), (grads, cotangents) = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, outputs)

    def pull_back(cut: tuple[Any, Any]) -> tuple[Any, Any]:
        inputs_row, cotangent = cut
        _, vjp = jax.vjp(lambda p: encode(p, inputs_row), params)
        return vjp(cotangent)[0], ()

    encoder_grads, _ = _scan_sum(pull_back, (cuts, split(cotangents, slices)))
    return Gradients(jax.tree.map(jnp.add, grads, encoder_grads), loss_value, loss)


def split(tree: Any, slices: int) -> Any:
    """[B, ...] -> [k, B/k, ...]. Example i goes to slice i mod k, so every device cuts its own rows and moves none."""
    return jax.tree.map(lambda x: x.reshape(-1, slices, *x.shape[1:]).swapaxes(0, 1), tree)


def join(tree: Any) -> Any:
    """The inverse of `split`: [k, B/k, ...] -> [B, ...] in batch order."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def _scan_sum(f: Callable[[Any], tuple[Any, Any]], xs: Any) -> tuple[Any, Any]:
    """Maps f over the leading axis of `xs`: the sum of its first results, and the stack of its second results."""
    shapes, _ = jax.eval_shape(f, jax.tree.map(lambda x: x[0], xs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(carry: Any, x: Any) -> tuple[Any, Any]:
        added, stacked = f(x)
        return jax.tree.map(jnp.add, carry, added), stacked

    return jax.lax.scan(body, zeros, xs)
