"""The loss of an objective on held-out data: sums and weights of batches, added over a whole split."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.evals.base import Metrics
from ssljax.objectives.base import Ctx, Loss, Objective, rows_of, stream, views_of

# (params, extra, device batch, number of the batch, number of its rows that count) -> terms and metrics
LossFn = Callable[[Any, Any, Any, int, int], Loss]


def held_out_loss(objective: Objective, seed: int, steps: int) -> LossFn:
    """Returns a function that computes the loss of a batch with fixed random keys, without dropout.

    Augmentation that is not part of the task is left out (`Objective.held_out`). If only some rows of a batch count,
    the loss is computed for each example and the other rows get weight 0; this is exact for an objective that is not
    coupled.

    Args:
        objective: the objective.
        seed: seed of the run.
        steps: length of the run; settings that are scheduled over the run have their last value.
    """
    objective = objective.held_out()

    def encoded(params: Any, extra: Any, batch: Any, number: Any) -> tuple[Any, Any, Ctx]:
        inputs = views_of(objective, stream(jnp.uint32(seed), number, "eval_views"), batch, number)
        ctx = Ctx(stream(jnp.uint32(seed), number, "eval_encode"), jnp.int32(steps), rows_of(batch), train=False)
        return inputs, objective.encode(params, extra, inputs, ctx), ctx

    @jax.jit
    def of_batch(params: Any, extra: Any, batch: Any, number: Any) -> Loss:
        inputs, outputs, ctx = encoded(params, extra, batch, number)
        loss = objective.loss(params, extra, outputs, inputs, ctx)
        return Loss(loss.terms, loss.metrics)

    @jax.jit
    def of_rows(params: Any, extra: Any, batch: Any, number: Any, count: Any) -> Loss:
        inputs, outputs, ctx = encoded(params, extra, batch, number)

        def of_example(example: Any) -> Loss:
            inputs, outputs, row = jax.tree.map(lambda x: x[None], example)
            loss = objective.loss(params, extra, outputs, inputs, ctx.replace(row=row))
            return Loss(jax.tree.map(jnp.asarray, loss.terms), loss.metrics)

        found = jax.lax.map(of_example, (inputs, outputs, ctx.row))  # every leaf is [B]
        add = lambda x_B: jnp.sum(jnp.where(ctx.row < count, x_B, 0))  # noqa: E731
        terms = {name: (c[0], add(s), add(w)) for name, (c, s, w) in found.terms.items()}
        return Loss(terms, {name: (add(s), add(w)) for name, (s, w) in found.metrics.items()})

    def loss(params: Any, extra: Any, batch: Any, number: int, count: int) -> Loss:
        whole = count == len(jax.tree.leaves(batch)[0])
        number = jnp.int32(number)  # type: ignore[assignment]
        return of_batch(params, extra, batch, number) if whole else of_rows(params, extra, batch, number, count)

    return loss


def mean_loss(batches: Iterable[Loss]) -> Metrics:
    """Returns the loss, its terms if it has several, and the metrics, from the sums and weights of all batches.

    `loss` is the sum over terms of coefficient x sum / weight; a term of weight 0 adds nothing. A mean of weight 0 is
    NaN.
    """
    terms: dict[str, np.ndarray] = {}
    sums: dict[str, np.ndarray] = {}
    coefficients: dict[str, float] = {}
    for batch in batches:
        for name, (coefficient, *pair) in batch.terms.items():
            terms[name] = terms.get(name, 0) + np.asarray(pair, np.float64)
            coefficients[name] = float(coefficient)
        for name, metric in batch.metrics.items():
            sums[name] = sums.get(name, 0) + np.asarray(metric, np.float64)
    counted = [coefficients[name] * s / w for name, (s, w) in terms.items() if w]
    parts = {f"loss/{name}": pair for name, pair in terms.items()} if len(terms) > 1 else {}
    means = {name: float(s / w) if w else float("nan") for name, (s, w) in {**parts, **sums}.items()}
    return {"loss": sum(counted) if counted else float("nan"), **means}
