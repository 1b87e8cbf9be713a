"""SimCLR: contrastive learning of two augmented views of an image against the other images of the batch.

Chen, Kornblith, Norouzi, Hinton 2020, "A Simple Framework for Contrastive Learning of Visual Representations".
"""

import dataclasses
from typing import Any, ClassVar

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.contrastive.matching import ContrastiveObjective
from ssljax.objectives.two_view import Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class SimCLR(TwoView, ContrastiveObjective):
    """NT-Xent (eq. 1) on projections of the two views; the projector is not used after training."""

    term: ClassVar[str] = "nt_xent"
    joint: ClassVar[bool] = True

    temperature: float = schema.setting(0.1, gt=0, doc="temperature of the softmax over similarities (tau of eq. 1)")

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        first, second = seen.p[:, 0], seen.p[:, 1]
        matched = self.match(losses.nt_xent, first, second, {"temperature": self.temperature}, ctx)
        return Compared(matched.values, {"accuracy": matched.accuracy})
