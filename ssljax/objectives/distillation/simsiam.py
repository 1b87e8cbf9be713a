"""SimSiam: each view predicts the other one, whose projection is taken as a constant.

Chen & He 2021, "Exploring Simple Siamese Representation Learning".
"""

import dataclasses
from typing import Any, ClassVar

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.projector import Predictor, Projector
from ssljax.objectives.two_view import PIPELINES, Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class SimSiam(TwoView):
    """The mean over both directions of -cos(prediction, projection) (eq. 2)."""

    term: ClassVar[str] = "simsiam"
    reads_target: ClassVar[bool] = True

    augment: Any = schema.setting(
        {
            "name": "two_views",
            "crop_scale": (0.2, 1.0),
            "augment": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        },
        registry=PIPELINES,
        doc="augmentation of the two views, by default with the operations of MoCo v2, as in the paper",
    )
    projector: Projector = schema.setting(
        Projector(output=2048, layers=3, final_norm=True), doc="network between the encoder and the loss"
    )
    predictor: Predictor | None = schema.setting(
        Predictor(hidden=512), doc="network from projections to predictions; None: none; runs of the paper collapse"
    )
    stop_gradient: bool = schema.setting(
        True, doc="whether targets are constants; without, runs of the paper collapse (section 4.1)"
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        return Compared(sum(self._direction(seen.p[:, v], seen.target[:, 1 - v]) for v in (0, 1)) / 2)

    def _direction(self, p: Any, z: Any) -> Any:
        if self.stop_gradient:
            return losses.simsiam(p, z, reduce=False)[0]
        return losses.alignment(p, z, reduce=False)[0] / 2 - 1  # -cos, with the gradient of both
