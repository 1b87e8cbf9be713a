"""SSL-HSIC: embeddings depend on the identity of the image as much as a kernel can tell.

Li, Pogodin, Sutherland, Gretton 2021, "Self-Supervised Learning with Kernel Dependence Maximization".
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.projector import Predictor, Projector
from ssljax.objectives.teacher import Teacher
from ssljax.objectives.two_view import Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class SSLHSIC(TwoView):
    """-HSIC(Z, Y) + gamma sqrt(HSIC(Z, Z)), Z the prediction of one view and the target of the other.

    The kernel is computed for all pairs of the batch, where the authors approximate it by random features.
    """

    term: ClassVar[str] = "ssl_hsic"

    gamma: float = schema.setting(3.0, ge=0, doc="weight of the dependence of embeddings on themselves")
    bandwidth: float = schema.setting(1.0, gt=0, doc="scale of the inverse multiquadric kernel (c)")
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
        each = [jnp.stack([seen.p[:, v], seen.target[:, 1 - v]], 1) for v in (0, 1)]  # [B, 2, E]
        first, second = (losses.hsic(pair, gamma=self.gamma, bandwidth=self.bandwidth) for pair in each)
        return Compared((first + second) / 2)
