"""VICReg: views of an image agree, while each dimension varies over the batch and differs from the others.

Bardes, Ponce, LeCun 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning".
"""

import dataclasses
from typing import Any, ClassVar

from ssljax import losses, views
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.distillation.byol import VIEWS
from ssljax.objectives.projector import Projector
from ssljax.objectives.two_view import Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class VICReg(TwoView):
    """Invariance, variance and covariance of the projections (eq. 6)."""

    term: ClassVar[str] = "vicreg"

    sim: float = schema.setting(25.0, ge=0, doc="weight of the invariance (lambda)")
    var: float = schema.setting(25.0, ge=0, doc="weight of the variance (mu); 0 collapses the method")
    cov: float = schema.setting(1.0, ge=0, doc="weight of the covariance (nu)")
    augment: Any = schema.setting(
        VIEWS,
        registry=views.REGISTRY.only("two_views"),
        doc="augmentation of the two views, by default with the operations of BYOL, as in the paper",
    )
    projector: Projector = schema.setting(
        Projector(hidden=8192, output=8192, layers=3), doc="network between the encoder and the loss"
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        return Compared(losses.vicreg(seen.p[:, 0], seen.target[:, 1], sim=self.sim, var=self.var, cov=self.cov))
