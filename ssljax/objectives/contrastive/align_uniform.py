"""Alignment and uniformity as a loss: views of an image are near each other, and all images spread over the sphere.

Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere".
"""

import dataclasses
from typing import Any, ClassVar

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.two_view import Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class AlignUniform(TwoView):
    """`weight` times the alignment (eq. 3) plus the mean uniformity of the two views (eq. 4)."""

    term: ClassVar[str] = "align_uniform"
    joint: ClassVar[bool] = True

    weight: float = schema.setting(1.0, ge=0, doc="weight of the alignment")
    alpha: float = schema.setting(2.0, gt=0, doc="exponent of the distance of the alignment (eq. 3)")
    t: float = schema.setting(2.0, gt=0, doc="factor of squared distances in the uniformity (eq. 4)")

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        first, second = seen.p[:, 0], seen.p[:, 1]
        spread = (losses.uniformity(first, self.t) + losses.uniformity(second, self.t)) / 2
        return Compared(self.weight * losses.alignment(first, second, self.alpha) + spread)
