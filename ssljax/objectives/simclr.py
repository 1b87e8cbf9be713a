"""SimCLR: contrastive learning of two augmented views of an image against the other images of the batch.

Chen, Kornblith, Norouzi, Hinton 2020, "A Simple Framework for Contrastive Learning of Visual Representations".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.layers.heads import MLPHead
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.contrastive import ContrastiveObjective
from ssljax.objectives.images import uniformity, view_flops
from ssljax.objectives.projector import Projector


@dataclasses.dataclass(frozen=True)
class SimCLR(ContrastiveObjective):
    """NT-Xent (eq. 1) on projections of the two views; the projector is not used after training."""

    temperature: float = schema.setting(0.1, gt=0, doc="temperature of the softmax over similarities (tau of eq. 1)")
    augment: Any = schema.setting(
        {"name": "two_views"},
        registry=views.REGISTRY.only("two_views"),
        doc="augmentation of the two views, by default with the operations of appendix A",
    )
    projector: Projector = schema.setting(Projector(), doc="network between the encoder and the loss")

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        images = self.prepare(batch)["image"]
        encoder_key, projector_key = jax.random.split(key)
        encoder = self.model.init(encoder_key, images)["params"]
        projector = self._projector().init(projector_key, jnp.zeros((2, self.model.width)))["params"]
        return Variables({"encoder": encoder, "projector": projector}, {})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        return {"image": self.augment(keys, batch["image"], batch.get("aspect"))}  # [B, 2, h, w, C]

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        return self.encode_images(params["encoder"], inputs["image"], noise_of(ctx, 2), ctx)  # [B, 2, D]

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        z_BxVxE = apply(self._projector(), params["projector"], outputs)
        first, second = z_BxVxE[:, 0], z_BxVxE[:, 1]
        matched = self.match(losses.nt_xent, first, second, {"temperature": self.temperature}, ctx)
        n = jnp.float32(first.shape[0])
        metrics = {
            "accuracy": matched.accuracy,
            "alignment": (n * losses.alignment(first, second), n),
            "uniformity": (n * uniformity(first), n),
            "feature_std": (n * losses.feature_std(outputs[:, 0]), n),
        }
        return Loss({"nt_xent": matched.term}, metrics)

    def _projector(self) -> MLPHead:
        return self.projector.module(output_ratio(self.model))

    def flops(self, spec: Any) -> float:
        head = self._projector().flops(self.model.width)
        return 2 * (view_flops(self.model, self.augment, spec) + head)
