"""Base class of objectives that match the two vectors of an example among those of the whole batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.images import ImageObjective

# Largest batches for which `auto` is dense and chunked (docs/contrastive.md has the measurements).
DENSE, CHUNKED = 4096, 65_536


class Matched(NamedTuple):
    """The loss of each example, its weight, and the share of its anchors that found their partner; [B] each."""

    values: jax.Array
    weights: jax.Array
    correct: jax.Array

    @property
    def term(self) -> tuple[float, jax.Array, jax.Array]:
        """The loss term: (coefficient, sum, weight)."""
        return 1.0, jnp.sum(self.values * self.weights), jnp.sum(self.weights)

    @property
    def accuracy(self) -> tuple[jax.Array, jax.Array]:
        """The metric: (sum, weight)."""
        return jnp.sum(self.correct * self.weights), jnp.sum(self.weights)


@dataclasses.dataclass(frozen=True)
class ContrastiveObjective(ImageObjective):
    """An objective whose loss compares every example with all others of the global batch."""

    coupled: ClassVar[bool] = True

    form: Literal["auto", "dense", "chunked", "ring"] = schema.setting(
        "auto",
        free=True,
        doc="form of the loss, which changes memory and time only; 'dense' stores the matrix of all pairs of the "
        "batch; 'chunked' computes it block by block, again in the backward pass; on a mesh, devices gather the "
        "vectors of the others; 'ring': vectors travel from device to device instead, with least memory; 'auto': dense "
        "up to 4,096 examples in the batch, chunked up to 65,536, then ring",
    )

    def match(
        self,
        loss: Callable[..., Any],
        first: jax.Array,
        second: jax.Array,
        learned: dict[str, Any],
        ctx: Ctx,
        weights: jax.Array | None = None,
    ) -> Matched:
        """Computes a contrastive loss of `ssljax.losses` in the form that is configured.

        Args:
            loss: a loss of `ssljax.losses` with the arguments `form`, `axis_name` and `accuracy`.
            first, second: the two vectors of each example, [B, D].
            learned: further arguments of the loss, scalars.
            ctx: the context of `loss`.
            weights: float32 [B]; 0: the example is neither anchor nor negative. None: ones.
        """
        form = self.form
        if form == "auto":
            form = "dense" if len(first) <= DENSE else "chunked" if len(first) <= CHUNKED else "ring"

        def local(axis_name: Any, rows: Any, learned: dict[str, Any]) -> Any:
            weights = rows[2] if len(rows) > 2 else None
            options = {"weights": weights, "reduce": False, "accuracy": True, "form": form, "axis_name": axis_name}
            return loss(*rows[:2], **learned, **options)

        rows = (first, second) if weights is None else (first, second, weights)

        if form == "dense":  # XLA splits the matrix over the mesh
            return Matched(*local(None, rows, learned))
        return Matched(*ctx.over_batch(local, rows, learned))
