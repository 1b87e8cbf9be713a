"""N-pair loss: a view of an image finds the other one among those of the batch, by dot products.

Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective".
"""

import dataclasses
from typing import Any, ClassVar

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.two_view import Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class NPair(TwoView):
    """The N-pair loss of the projections of the two views (eq. 7), in which every image is a class."""

    term: ClassVar[str] = "n_pair"
    joint: ClassVar[bool] = True

    l2: float = schema.setting(0.003, ge=0, doc="weight of the squared norms, since products have no temperature")

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        values, _ = losses.n_pair(seen.p[:, 0], seen.p[:, 1], l2=self.l2, reduce=False)
        return Compared(values)
