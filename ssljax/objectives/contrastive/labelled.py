"""Base class of the losses of metric learning, whose positives share a label or are views of one image."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.two_view import Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class Labelled(TwoView):
    """A loss of the 2B projections of a batch and their labels."""

    joint: ClassVar[bool] = True

    positives: Literal["labels", "views"] = schema.setting(
        "labels", doc="what makes two vectors positives; 'labels': one label; 'views': one image, without labels"
    )

    @property
    def reads_labels(self) -> bool:
        return self.positives == "labels"

    def of_labels(self, z_2BxD: jax.Array, labels_2B: jax.Array) -> jax.Array:
        """Returns the loss, a scalar."""
        raise NotImplementedError

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        labels = inputs["label"] if self.reads_labels else jnp.arange(len(seen.p))
        return Compared(self.of_labels(jnp.concatenate([seen.p[:, 0], seen.p[:, 1]]), jnp.tile(labels, 2)))
