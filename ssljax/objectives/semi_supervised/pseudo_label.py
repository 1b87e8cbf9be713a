"""Pseudo-label: the most probable class of an unlabelled image is its label.

Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks".
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.objectives.semi_supervised.semi_supervised import SemiSupervised, ramp


@dataclasses.dataclass(frozen=True)
class PseudoLabel(SemiSupervised):
    """Cross-entropy of unlabelled images with their own most probable class (eq. 15), whose weight rises (eq. 16)."""

    term: ClassVar[str] = "pseudo_label"

    weight: float = schema.setting(3.0, ge=0, doc="last weight of the unlabelled loss (alpha_f)")
    ramp: tuple[float, float] = schema.setting(
        (0.1, 0.6), ge=0, le=1, doc="shares of the run between which the weight rises from 0 (T1 and T2)"
    )
    threshold: float = schema.setting(0.0, ge=0, le=1, doc="least probability of a pseudo-label; the paper has none")

    def validate(self) -> None:
        if self.ramp[0] > self.ramp[1]:
            raise ValueError(f"ramp: got {self.ramp}, the first share must be at most the second")

    @property
    def total_dependent(self) -> bool:
        return True

    def looks(self, keys: jax.Array, images: jax.Array, aspect: jax.Array | None) -> jax.Array:
        return self.augment(views.fold_in(keys, 0), images, aspect)[:, None]

    def unlabelled(self, logits: jax.Array, teacher: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        values, _ = losses.fixmatch(logits[:, 0], logits[:, 0], threshold=self.threshold, reduce=False)
        confident = jax.nn.softmax(logits[:, 0].astype(jnp.float32)).max(-1) >= self.threshold
        return self.weight * ramp(step, self.steps, *self.ramp), values, {"confident": confident}

    @property
    def passes(self) -> float:
        return 1.0
