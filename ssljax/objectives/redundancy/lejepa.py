"""LeJEPA: views of an image agree, and embeddings follow a standard normal distribution.

Balestriero & LeCun 2025, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics".
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses
from ssljax.base import schema
from ssljax.base.hashing import name_id
from ssljax.objectives.base import Ctx
from ssljax.objectives.distillation.byol import COLOURS
from ssljax.objectives.projector import Projector
from ssljax.objectives.two_view import PIPELINES, Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class LeJEPA(TwoView):
    """(1 - weight) times the squared distance of the views from their mean, plus weight times SIGReg of each view."""

    term: ClassVar[str] = "lejepa"

    weight: float = schema.setting(0.05, ge=0, le=1, doc="weight of SIGReg (lambda)")
    directions: int = schema.setting(1024, gt=0, doc="number of random directions, drawn at every step")
    augment: Any = schema.setting(
        {"name": "two_views", "crop_scale": (0.3, 1.0), "augment": {**COLOURS, "blur": 0.5, "solarize": 0.2}},
        registry=PIPELINES,
        doc="augmentation of the two views, by default the operations of the authors' large crops",
    )
    projector: Projector = schema.setting(
        Projector(hidden=2048, output=64, layers=3), doc="network between the encoder and the loss"
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        z = seen.p.astype(jnp.float32)
        key = jax.random.fold_in(ctx.key, name_id("directions"))
        directions = jax.random.normal(key, (z.shape[-1], self.directions))
        spread = (losses.sigreg(z[:, 0], directions) + losses.sigreg(z[:, 1], directions)) / 2
        distance = jnp.mean(jnp.square(z - jnp.mean(z, 1, keepdims=True)), (1, 2))  # [B]
        n = jnp.float32(len(z))
        metrics = {"sigreg": (n * spread, n), "distance": (jnp.sum(distance), n)}
        return Compared((1 - self.weight) * distance + self.weight * spread, metrics)
