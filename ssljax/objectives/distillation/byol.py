"""BYOL: a student predicts the projection of another view by its own moving average, without negatives.

Grill, Strub, Altche, Tallec, Richemond et al. 2020, "Bootstrap Your Own Latent: A New Approach to Self-Supervised
Learning".
"""

import dataclasses
from typing import Any, ClassVar

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.projector import Predictor, Projector
from ssljax.objectives.teacher import Teacher
from ssljax.objectives.two_view import PIPELINES, Compared, TwoView, Views

# Appendix B: the views differ in blur and solarisation.
COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
VIEWS = {
    "name": "two_views",
    "augment": {**COLOURS, "blur": 1.0},
    "second": {**COLOURS, "blur": 0.1, "solarize": 0.2},
}


@dataclasses.dataclass(frozen=True)
class BYOL(TwoView):
    """The sum over both directions of 2 - 2 cos(prediction, target) (eq. 2)."""

    term: ClassVar[str] = "byol"
    reads_target: ClassVar[bool] = True

    augment: Any = schema.setting(
        VIEWS,
        registry=PIPELINES,
        doc="augmentation of the two views, by default with the operations of appendix B",
    )
    projector: Projector = schema.setting(
        Projector(hidden=4096, output=256), doc="network between the encoder and the loss"
    )
    predictor: Predictor | None = schema.setting(
        Predictor(hidden=4096), doc="network from projections to predictions; None: none; runs of the paper collapse"
    )
    teacher: Teacher | None = schema.setting(
        Teacher(),
        doc="moving average of encoder and projector, which makes the targets; None: the student makes them, without "
        "gradient",
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        return Compared(sum(losses.byol(seen.p[:, v], seen.target[:, 1 - v], reduce=False)[0] for v in (0, 1)))
