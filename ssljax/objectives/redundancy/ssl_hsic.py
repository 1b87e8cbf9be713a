"""SSL-HSIC: embeddings depend on the identity of the image as much as a kernel can tell.

Li, Pogodin, Sutherland, Gretton 2021, "Self-Supervised Learning with Kernel Dependence Maximization".
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.distillation.byol import VIEWS
from ssljax.objectives.projector import Predictor, Projector
from ssljax.objectives.teacher import Teacher
from ssljax.objectives.two_view import PIPELINES, Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class SSLHSIC(TwoView):
    """-HSIC(Z, Y) + gamma sqrt(HSIC(Z, Z)), Z the predictions and the targets of both views.

    The kernel is computed for all pairs of the batch, where the authors approximate it by random features, and its
    scale is constant, where theirs is learned.
    """

    term: ClassVar[str] = "ssl_hsic"
    reads_target: ClassVar[bool] = True

    gamma: float = schema.setting(3.0, ge=0, doc="weight of the dependence of embeddings on themselves")
    bandwidth: float = schema.setting(1.0, gt=0, doc="scale of the inverse multiquadric kernel (c)")
    augment: Any = schema.setting(
        VIEWS,
        registry=PIPELINES,
        doc="augmentation of the two views, by default with the operations of BYOL, as in the paper",
    )
    projector: Projector = schema.setting(
        Projector(hidden=4096, output=256), doc="network between the encoder and the loss"
    )
    predictor: Predictor | None = schema.setting(
        Predictor(hidden=4096), doc="network from projections to predictions; None: none"
    )
    teacher: Teacher | None = schema.setting(
        Teacher(momentum=0.99), doc="moving average of encoder and projector; None: the student makes the targets"
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        vectors = [seen.p, seen.target] if self.predictor or self.teacher else [seen.p]
        z = jnp.concatenate(vectors, 1)  # [B, 4 or 2, E]
        aligned, one = (-losses.hsic(z, gamma=gamma, bandwidth=self.bandwidth) for gamma in (0.0, 1.0))
        spread = aligned - one
        n = jnp.float32(len(z))
        return Compared(self.gamma * spread - aligned, {"hsic_zy": (n * aligned, n), "hsic_zz_root": (n * spread, n)})
