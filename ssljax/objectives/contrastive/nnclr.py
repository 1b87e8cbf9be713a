"""NNCLR: the positive of a view is the nearest neighbour of the other view among earlier images.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman 2021, "With a Little Help from My Friends: Nearest-Neighbor Contrastive
Learning of Visual Representations".
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses
from ssljax.base import schema
from ssljax.losses.reduction import EXACT, l2_normalize
from ssljax.objectives.base import Ctx
from ssljax.objectives.contrastive.matching import ContrastiveObjective
from ssljax.objectives.projector import Predictor, Projector
from ssljax.objectives.two_view import Compared, TwoView, Views


@dataclasses.dataclass(frozen=True)
class NNCLR(TwoView, ContrastiveObjective):
    """InfoNCE between neighbours of projections and predictions of the other view (eq. 3), both ways."""

    term: ClassVar[str] = "nnclr"
    reads_target: ClassVar[bool] = True
    reads_queue: ClassVar[bool] = True

    temperature: float = schema.setting(0.1, gt=0, doc="temperature of the softmax over similarities (tau)")
    projector: Projector = schema.setting(
        Projector(hidden=2048, output=256, layers=3, final_norm=True), doc="network between the encoder and the loss"
    )
    predictor: Predictor | None = schema.setting(
        Predictor(hidden=4096), doc="network from projections to predictions; None: none"
    )
    queue: int = schema.setting(
        98_304, gt=0, doc="number of projections of earlier batches among which neighbours are sought"
    )

    def compare(self, seen: Views, inputs: Any, extra: Any, ctx: Ctx) -> Compared:
        found = [self._direction(seen, v, extra["queue"], ctx) for v in (0, 1)]
        (values, (right, number), similarity) = jax.tree.map(lambda *each: each[0] + each[1], *found)
        n = jnp.float32(len(seen.p))
        metrics = {"accuracy": (right, number), "neighbour_similarity": (n * similarity / 2, n)}
        return Compared(values / 2, metrics, seen.target[:, 0])

    def _direction(self, seen: Views, v: int, queue: jax.Array, ctx: Ctx) -> Any:
        """Returns losses, accuracy, and similarity of the neighbours of view v to it."""
        own = seen.target[:, v]
        neighbour = nearest(own, queue)
        matched = self.match(losses.info_nce, neighbour, seen.p[:, 1 - v], {"temperature": self.temperature}, ctx)
        cosine = jnp.mean(jnp.sum(neighbour * l2_normalize(own), -1))
        return matched.values, matched.accuracy, jax.lax.stop_gradient(cosine)


def nearest(z_BxE: jax.Array, queue_QxE: jax.Array) -> jax.Array:
    """Returns the vectors of the queue with the largest cosines, [B, E], without gradient."""
    similarity = jnp.matmul(l2_normalize(jax.lax.stop_gradient(z_BxE)), queue_QxE.T, precision=EXACT)
    return queue_QxE[jnp.argmax(similarity, -1)]
