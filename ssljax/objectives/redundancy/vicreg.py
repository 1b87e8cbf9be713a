"""VICReg: views of an image agree, while each dimension varies over the batch and differs from the others.

Bardes, Ponce, LeCun 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning".
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.distillation.byol import COLOURS
from ssljax.objectives.projector import Projector
from ssljax.objectives.two_view import PIPELINES, Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class VICReg(TwoView):
    """Invariance, variance and covariance of the projections (eq. 6)."""

    term: ClassVar[str] = "vicreg"
    reads_target: ClassVar[bool] = True

    sim: float = schema.setting(25.0, ge=0, doc="weight of the invariance (lambda)")
    var: float = schema.setting(25.0, ge=0, doc="weight of the variance (mu); 0: runs of the paper collapse")
    cov: float = schema.setting(1.0, ge=0, doc="weight of the covariance (nu)")
    augment: Any = schema.setting(
        {"name": "two_views", "augment": {**COLOURS, "blur": 0.5, "solarize": 0.1}},
        registry=PIPELINES,
        doc="augmentation of the two views, by default that of BYOL made alike for both, as in the paper",
    )
    projector: Projector = schema.setting(
        Projector(hidden=8192, output=8192, layers=3), doc="network between the encoder and the loss"
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        found = [self._parts(seen.p[:, a], seen.target[:, b]) for a, b in self.pairings]
        parts = {name: jnp.mean(jnp.stack([each[name] for each in found])) for name in found[0]}
        n = jnp.float32(len(seen.p))
        value = self.sim * parts["invariance"] + self.var * parts["variance"] + self.cov * parts["covariance"]
        return Compared(value, {name: (n * part, n) for name, part in parts.items()})

    def _parts(self, first: jax.Array, second: jax.Array) -> dict[str, jax.Array]:
        """The parts of the loss, without their weights."""
        weights = {"invariance": (1, 0, 0), "variance": (0, 1, 0), "covariance": (0, 0, 1)}
        return {
            name: losses.vicreg(first, second, sim=sim, var=var, cov=cov) for name, (sim, var, cov) in weights.items()
        }
