"""Triplet loss: an image is nearer to the images of its class than to others, by a margin.

Schroff, Kalenichenko, Philbin 2015, "FaceNet: A Unified Embedding for Face Recognition and Clustering"; Hermans, Beyer,
Leibe 2017, "In Defense of the Triplet Loss for Person Re-Identification".
"""

import dataclasses
from typing import ClassVar, Literal

import jax

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.contrastive.labelled import Labelled


@dataclasses.dataclass(frozen=True)
class Triplet(Labelled):
    """The hinge of d(anchor, positive) - d(anchor, negative) + margin over triplets of a batch (FaceNet, eq. 2)."""

    term: ClassVar[str] = "triplet"

    margin: float = schema.setting(0.2, ge=0, doc="margin between positives and negatives")
    mining: Literal["all", "hard", "semi"] = schema.setting(
        "semi",
        doc="triplets that count; 'all' of the batch; 'hard': farthest positive and nearest negative; 'semi': the "
        "nearest negative that is farther than the positive",
    )
    squared: bool = schema.setting(True, doc="whether distances are squared, as in FaceNet")
    soft: bool = schema.setting(False, doc="whether log(1 + exp(.)) replaces the hinge and its margin")
    reduction: Literal["mean", "nonzero", "sum"] = schema.setting(
        "mean", doc="mean over all triplets, over those above 0, or the sum"
    )
    normalize: bool = schema.setting(True, doc="whether vectors are normalised, as in FaceNet")

    def of_labels(self, z_2BxD: jax.Array, labels_2B: jax.Array) -> jax.Array:
        return losses.triplet(
            z_2BxD,
            labels_2B,
            margin=self.margin,
            mining=self.mining,
            squared=self.squared,
            soft=self.soft,
            reduction=self.reduction,
            normalize=self.normalize,
        )
