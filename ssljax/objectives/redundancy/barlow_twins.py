"""Barlow Twins: the correlation between the dimensions of two views is pushed towards the identity.

Zbontar, Jing, Misra, LeCun, Deny 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction".
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses
from ssljax.base import schema
from ssljax.objectives.base import Ctx
from ssljax.objectives.distillation.byol import VIEWS
from ssljax.objectives.projector import Projector
from ssljax.objectives.two_view import PIPELINES, Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class BarlowTwins(TwoView):
    """The squared distance of the cross-correlation from the identity (eq. 1)."""

    term: ClassVar[str] = "barlow_twins"
    reads_target: ClassVar[bool] = True

    lambda_offdiag: float = schema.setting(5e-3, ge=0, doc="weight of the off-diagonal entries (lambda of eq. 1)")
    scale: float = schema.setting(1.0, gt=0, doc="factor of the loss; the authors' code has 0.024 with LARS")
    augment: Any = schema.setting(
        VIEWS,
        registry=PIPELINES,
        doc="augmentation of the two views, by default with the operations of BYOL, as in the paper",
    )
    projector: Projector = schema.setting(
        Projector(hidden=8192, output=8192, layers=3), doc="network between the encoder and the loss"
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        found = [self._parts(seen.p[:, a], seen.target[:, b]) for a, b in self.pairings]
        on, off = (jnp.mean(jnp.stack(parts)) for parts in zip(*found))
        n = jnp.float32(len(seen.p))
        metrics = {"on_diagonal": (n * on, n), "off_diagonal": (n * off, n)}
        return Compared(self.scale * (on + self.lambda_offdiag * off), metrics)

    def _parts(self, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sums over the diagonal, and over the other entries without their weight."""
        on, both = (losses.barlow_twins(first, second, lambda_offdiag=weight) for weight in (0.0, 1.0))
        return on, both - on
