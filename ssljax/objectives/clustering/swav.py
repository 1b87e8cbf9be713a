"""SwAV: other crops predict the cluster assignment of a crop; assignments use all clusters equally in a batch.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments".
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.layers.heads import MLPHead, Prototypes
from ssljax.layers.width import output_ratio
from ssljax.losses.reduction import l2_normalize
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply
from ssljax.objectives.images import ImageObjective, crop_flops, each_crop, uniformity
from ssljax.objectives.projector import Projector

# Section 3.2 and appendix A.1: two large and six small crops, all with the operations of SimCLR.
CROPS = {
    "name": "multi_crop",
    "local_crops": 6,
    "global_scale": (0.14, 1.0),
    "local_scale": (0.05, 0.14),
    "augment": {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "blur": 0.5},
    "second": None,
    "local": None,
}


@dataclasses.dataclass(frozen=True)
class SwAV(ImageObjective):
    """Swapped prediction (eq. 2) of Sinkhorn assignments (eq. 3-5).

    To freeze the prototypes during the first epoch, as the paper does, set `optimizer.freeze`.
    """

    coupled: ClassVar[bool] = True

    prototypes: int = schema.setting(3000, gt=0, doc="number of clusters (K)")
    temperature: float = schema.setting(0.1, gt=0, doc="temperature of the predicted assignments (tau of eq. 2)")
    epsilon: float = schema.setting(
        0.05,
        gt=0,
        doc="weight of the entropy in the target assignments (eq. 3); a small value gives almost hard assignments",
    )
    sinkhorn_iterations: int = schema.setting(
        3,
        ge=0,
        doc="number of Sinkhorn iterations, which balance the assignments; 0: softmax assignments without balance, "
        "with which the method collapses",
    )
    queue: int = schema.setting(
        0,
        ge=0,
        doc="number of examples of earlier batches that join the batch when assignments are balanced (section 4.1, "
        "'small batches'); used as soon as the queue is full (in the paper: from epoch 15 on); 0: no queue",
    )
    augment: Any = schema.setting(
        CROPS,
        registry=views.REGISTRY.only("multi_crop"),
        doc="large and small crops, by default with the recipe of the paper: SimCLR's operations on all of them",
    )
    projector: Projector = schema.setting(Projector(), doc="network between the encoder and the prototypes")

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, projector_key, prototype_key = jax.random.split(key, 3)
        encoder = self.model.init(encoder_key, self.prepare(batch)["image"])["params"]
        projector = self._projector().init(projector_key, jnp.zeros((2, self.model.width)))["params"]
        prototypes = self._prototypes().init(prototype_key, jnp.zeros((1, self.projector.output)))["params"]
        params = {"encoder": encoder, "projector": projector, "prototypes": prototypes}
        if not self.queue:
            return Variables(params, {})
        shape = (self.queue, self.augment.global_crops, self.projector.output)
        queue = nn.LogicallyPartitioned(jnp.zeros(shape), ("queue", None, None))
        return Variables(params, {"queue": queue, "filled": jnp.int32(0)})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        return self.augment(keys, batch["image"], batch.get("aspect"))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        # [B, V, D], global crops first
        return each_crop(inputs, ctx, lambda views, noise: self.encode_images(params["encoder"], views, noise, ctx))

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        z_BxVxE = apply(self._projector(), params["projector"], outputs)
        z_BxVxE = l2_normalize(z_BxVxE)
        score = lambda z: apply(self._prototypes(), params["prototypes"], z)  # noqa: E731
        scores = jnp.swapaxes(score(z_BxVxE), 0, 1)  # [V, B, K]
        globals_ = inputs["global"].shape[1]
        z_BxGxE, large = z_BxVxE[:, :globals_], scores[:globals_]
        assignments = self._assign(large, extra, score)  # [G, B, K]
        small = scores[globals_:] if len(scores) > globals_ else None
        values, weights = losses.swapped(large, small, assignments, self.temperature, reduce=False)
        n = jnp.float32(values.shape[0])
        mean_assignment = jnp.mean(assignments, (0, 1))
        metrics = {
            "assignment_entropy": (n * losses.entropy(mean_assignment), n),
            "feature_std": (n * losses.feature_std(outputs[:, 0]), n),
            "alignment": (n * losses.alignment(z_BxGxE[:, 0], z_BxGxE[:, -1]), n),
            "uniformity": (n * uniformity(z_BxGxE[:, 0]), n),
        }
        rows = jax.lax.stop_gradient(z_BxGxE) if self.queue else ()
        return Loss({"swav": (1.0, jnp.sum(values * weights), jnp.sum(weights))}, metrics, rows=rows)

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        if not self.queue:
            return extra
        queue = jnp.concatenate([rows, extra["queue"]])[: self.queue]  # newest first
        return {"queue": queue, "filled": jnp.minimum(extra["filled"] + rows.shape[0], self.queue)}

    def _projector(self) -> MLPHead:
        return self.projector.module(output_ratio(self.model))

    def flops(self, spec: Any) -> float:
        projector = self._projector()
        head = projector.flops(self.model.width) + self._prototypes().flops(projector.features[-1])
        return sum(crop_flops(self.model, self.augment, spec, head).values())

    def _prototypes(self) -> Prototypes:
        return Prototypes(self.prototypes)

    def _assign(self, scores_GxBxK: jax.Array, extra: Any, score: Any) -> jax.Array:
        """Assignments [G, B, K] of the global crops, balanced over the batch and, once it is full, the queue."""
        options: dict[str, Any] = {"epsilon": self.epsilon, "iterations": self.sinkhorn_iterations}
        if self.queue:
            full = jnp.float32(extra["filled"] == self.queue)
            queue = jnp.swapaxes(score(extra["queue"]), 0, 1)
            options |= {"queue": queue, "queue_weights": jnp.full(self.queue, full)}
        return losses.assignments(scores_GxBxK, **options)
