"""MoCo: queries of a student find their keys, of a momentum encoder, among the keys of other images.

He, Fan, Wu, Xie, Girshick 2020, "Momentum Contrast for Unsupervised Visual Representation Learning" (v1); Chen, Fan,
Girshick, He 2020, "Improved Baselines with Momentum Contrastive Learning" (v2); Chen, Xie, He 2021, "An Empirical Study
of Training Self-Supervised Vision Transformers" (v3).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.contrastive.matching import ContrastiveObjective, Matched
from ssljax.objectives.distillation.byol import VIEWS
from ssljax.objectives.projector import Predictor, Projector
from ssljax.objectives.teacher import Teacher
from ssljax.objectives.two_view import PIPELINES, Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class MoCo(TwoView, ContrastiveObjective):
    """By default v3: keys of the batch are the negatives, both views are queries, with a predictor.

    v1 and v2 have a queue (65,536), no predictor, `symmetric=False`, and a constant momentum of 0.999. The temperature
    of v1 is 0.07, its projector `dict(output=128, layers=1)`; that of v2 is `dict(hidden=2048, output=128, norm=None)`.
    The queue takes the keys of second views.
    """

    term: ClassVar[str] = "moco"
    reads_target: ClassVar[bool] = True
    reads_queue: ClassVar[bool] = True

    temperature: float = schema.setting(0.2, gt=0, doc="temperature of the softmax over similarities (tau)")
    symmetric: bool = schema.setting(True, doc="whether both views are queries, or the first one alone (v1, v2)")
    augment: Any = schema.setting(
        VIEWS,
        registry=PIPELINES,
        doc="augmentation of the two views, by default with the operations of BYOL, as in v3",
    )
    projector: Projector = schema.setting(
        Projector(hidden=4096, output=256, layers=3, final_norm=True), doc="network between the encoder and the loss"
    )
    predictor: Predictor | None = schema.setting(
        Predictor(hidden=4096, final_norm=True), doc="network from projections to queries; None: none"
    )
    teacher: Teacher | None = schema.setting(
        Teacher(momentum=0.99), doc="the momentum encoder, which makes the keys; None: the student makes them"
    )
    queue: int = schema.setting(
        0,
        ge=0,
        doc="number of keys of earlier batches that are the negatives; they begin as random directions; 0: the other "
        "keys of the batch are (v3)",
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        pairs = [(seen.p[:, v], seen.target[:, 1 - v]) for v in ((0, 1) if self.symmetric else (0,))]
        found = [self._direction(query, key, extra, ctx) for query, key in pairs]
        # v3 adds both directions, each with a factor 2 tau.
        values = jnp.sum(jnp.stack([one.values for one in found]), 0)
        right, number = jax.tree.map(lambda *each: sum(each[1:], each[0]), *(one.accuracy for one in found))
        return Compared(values, {"accuracy": (right, number)}, seen.target[:, 1])

    def _direction(self, query: Any, key: Any, extra: Any, ctx: Ctx) -> Matched:
        if self.queue:
            options: dict[str, Any] = {"temperature": self.temperature, "reduce": False, "accuracy": True}
            return Matched(*losses.info_nce(query, jax.lax.stop_gradient(key), extra["queue"], **options))
        return self.match(losses.moco_v3, query, key, {"temperature": self.temperature}, ctx)
