"""Contrastive pairs: vectors of one class are near each other, others farther away than a margin.

Hadsell, Chopra, LeCun 2006, "Dimensionality Reduction by Learning an Invariant Mapping".
"""

import dataclasses
from typing import ClassVar

import jax

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.contrastive.labelled import Labelled


@dataclasses.dataclass(frozen=True)
class ContrastivePairs(Labelled):
    """d^2 of positives and max(0, margin - d)^2 of negatives, mean over all pairs of a batch (eq. 4)."""

    term: ClassVar[str] = "contrastive_pairs"

    margin: float = schema.setting(1.0, gt=0, doc="distance beyond which a pair of negatives costs nothing")
    squared: bool = schema.setting(True, doc="whether both terms are squared, as in the paper")

    def of_labels(self, z_2BxD: jax.Array, labels_2B: jax.Array) -> jax.Array:
        return losses.contrastive_pairs(z_2BxD, labels_2B, margin=self.margin, squared=self.squared)
