"""Barlow Twins: the correlation between the dimensions of two views is pushed towards the identity.

Zbontar, Jing, Misra, LeCun, Deny 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction".
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
class BarlowTwins(TwoView):
    """The squared distance of the cross-correlation from the identity (eq. 1)."""

    term: ClassVar[str] = "barlow_twins"

    lambda_offdiag: float = schema.setting(5e-3, ge=0, doc="weight of the off-diagonal entries (lambda of eq. 1)")
    scale: float = schema.setting(1.0, gt=0, doc="factor of the loss; the authors' code has 0.024 with LARS")
    augment: Any = schema.setting(
        VIEWS,
        registry=views.REGISTRY.only("two_views"),
        doc="augmentation of the two views, by default with the operations of BYOL, as in the paper",
    )
    projector: Projector = schema.setting(
        Projector(hidden=8192, output=8192, layers=3), doc="network between the encoder and the loss"
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        first, second = seen.p[:, 0], seen.target[:, 1]
        return Compared(losses.barlow_twins(first, second, lambda_offdiag=self.lambda_offdiag, scale=self.scale))
