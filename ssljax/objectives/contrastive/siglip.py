"""SigLIP: each pair of an image and a text is classified as matching or not, without a softmax over the batch.

Zhai, Mustafa, Kolesnikov, Beyer 2023, "Sigmoid Loss for Language Image Pre-Training".
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from ssljax import losses
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.objectives.base import Params, apply
from ssljax.objectives.contrastive.clip import CLIP


@dataclasses.dataclass(frozen=True)
class SigLIP(CLIP):
    """Sigmoid loss over cosine similarities times a learned scale plus a learned bias (section 3.2)."""

    term: ClassVar[str] = "siglip"
    criterion: ClassVar[Callable[..., Any]] = staticmethod(losses.siglip)

    max_scale: float | None = schema.setting(
        None,
        gt=0,
        doc="upper bound of the learned scale of the similarities, by clipping its parameter; None, as in the paper: "
        "no bound",
    )

    def check(self) -> None:
        super().check()
        if self.model.config.logit_bias is None:
            raise UserError("model.name: got 'clip', must be 'siglip', which has a learned bias of the similarities")

    def learned(self, params: Params) -> dict[str, jax.Array]:
        return {**super().learned(params), "logit_bias": apply(self.model, params, method="bias")}
