"""DCL: SimCLR without the positive pair in the denominator, which helps small batches.

Yeh, Hong, Hsu, Liu, Chen, LeCun 2022, "Decoupled Contrastive Learning".
"""

import dataclasses
import functools
from typing import Any, ClassVar

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.contrastive.matching import ContrastiveObjective
from ssljax.objectives.two_view import Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class DCL(TwoView, ContrastiveObjective):
    """The decoupled contrastive loss (eq. 6) on projections of the two views."""

    term: ClassVar[str] = "dcl"
    joint: ClassVar[bool] = True

    temperature: float = schema.setting(0.1, gt=0, doc="temperature of the similarities (tau of eq. 6)")
    weighted: bool = schema.setting(False, doc="whether hard positives weigh more (DCLW, eq. 7)")
    sigma: float = schema.setting(0.5, gt=0, doc="temperature of these weights; read if `weighted`")

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        loss = functools.partial(losses.decoupled_contrastive, weighted=self.weighted)
        learned = {"temperature": self.temperature, "sigma": self.sigma}
        matched = self.match(loss, seen.p[:, 0], seen.p[:, 1], learned, ctx)
        return Compared(matched.values, {"accuracy": matched.accuracy})
