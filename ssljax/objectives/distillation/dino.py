"""DINO: a student predicts, from other crops, the centred and sharpened output of its moving average, the teacher.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin 2021, "Emerging Properties in Self-Supervised Vision
Transformers".
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.layers.heads import DINOHead
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply
from ssljax.objectives.images import ImageObjective, crop_flops, each_crop, merge
from ssljax.objectives.teacher import ema, momentum


@dataclasses.dataclass(frozen=True)
class Head:
    """The projection head (section 3.1): three linear maps with GELU, L2 normalisation, then a layer of prototypes."""

    hidden: int = schema.setting(2048, gt=0, doc="output width of the first two linear maps")
    bottleneck: int = schema.setting(
        256, gt=0, doc="output width of the third linear map, whose output is L2-normalised"
    )
    prototypes: int = schema.setting(65536, gt=0, doc="outputs of the head, over which the softmax runs (K)")

    def module(self, input_ratio: float = 1.0) -> DINOHead:
        return DINOHead(self.prototypes, self.hidden, self.bottleneck, input_ratio)


@dataclasses.dataclass(frozen=True)
class DINO(ImageObjective):
    """Cross-entropy of the student's softmax on a crop and the teacher's softmax on another, global crop (eq. 3).

    To freeze the last layer during the first epoch, as the paper does, set `optimizer.freeze`.
    """

    student_temperature: float = schema.setting(0.1, gt=0, doc="temperature of the student's softmax (tau_s of eq. 1)")
    teacher_temperature: float = schema.setting(
        0.07, gt=0, doc="temperature of the teacher's softmax (tau_t) after its warm-up"
    )
    teacher_temperature_start: float = schema.setting(
        0.04, gt=0, doc="temperature of the teacher's softmax at step 0; it rises linearly during the warm-up"
    )
    teacher_warmup: float = schema.setting(
        0.3, ge=0, le=1, doc="share of the run in which the teacher's temperature rises; 0: it is constant"
    )
    centering: float | None = schema.setting(
        0.9,
        ge=0,
        lt=1,
        doc="decay per step of the running mean that is subtracted from the teacher's logits (eq. 4); None: no "
        "centring, which collapses the method",
    )
    momentum: float = schema.setting(
        0.996, ge=0, le=1, doc="decay of the teacher's moving average at step 0; it rises to 1 on a half cosine"
    )
    augment: Any = schema.setting(
        {"name": "multi_crop"},
        registry=views.REGISTRY.only("multi_crop"),
        doc="large and small crops, by default with the recipes of DINO's code",
    )
    head: Head = schema.setting(Head(), doc="projection head of student and teacher")

    @property
    def total_dependent(self) -> bool:
        return True

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, head_key = jax.random.split(key)
        images = self.prepare(batch)["image"]
        encoder = self.model.init(encoder_key, images)["params"]
        head = self.head.module(output_ratio(self.model)).init(head_key, jnp.zeros((1, self.model.width)))["params"]
        student = {"encoder": encoder, "head": head}
        center = nn.LogicallyPartitioned(jnp.zeros(self.head.prototypes), ("prototypes",))
        return Variables(student, {"teacher": jax.tree.map(jnp.copy, student), "center": center})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        # {"global": [B, G, h, w, C], "local": [B, L, s, s, C]}
        return self.augment(keys, batch["image"], batch.get("aspect"))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        student = each_crop(inputs, ctx, lambda views, noise: self._project(params, views, noise, ctx))
        teacher = self._project(extra["teacher"], inputs["global"], None)
        return {"student": student, "teacher": jax.lax.stop_gradient(teacher)}  # [B, V, K]

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        temperature = self._teacher_temperature(ctx.step)
        teacher = outputs["teacher"].astype(jnp.float32)
        center = extra["center"] if self.centering is not None else jnp.zeros_like(extra["center"])
        student = jnp.swapaxes(outputs["student"], 0, 1)  # [V, B, K]
        values, weights = losses.dino(
            student, jnp.swapaxes(teacher, 0, 1), center, self.student_temperature, temperature, reduce=False
        )
        weight = jnp.sum(weights)
        targets = jax.nn.softmax((teacher - center) / temperature, -1)
        entropy = jnp.mean(losses.entropy(targets), 1)  # [B]
        alignment, _ = losses.alignment(student[0], student[1], reduce=False)
        return Loss(
            {"dino": (1.0, jnp.sum(values * weights), weight)},
            {
                "teacher_entropy": (jnp.sum(entropy * weights), weight),
                "alignment": (jnp.sum(alignment * weights), weight),  # logits of the first two (global) crops
            },
            sums={"center": jnp.sum(jnp.mean(teacher, 1) * weights[:, None], 0), "weight": weight},
        )

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        decay = 0.0 if self.centering is None else self.centering
        mean = sums["center"] / jnp.maximum(sums["weight"], 1)
        return {
            "teacher": ema(extra["teacher"], params, momentum(self.momentum, step, self.steps)),
            "center": decay * extra["center"] + (1 - decay) * mean,
        }

    def model_params(self, params: Params, extra: Any) -> Params:
        return extra["teacher"]["encoder"]  # section 4: the teacher is evaluated

    def flops(self, spec: Any) -> float:
        head = self.head.module().flops(self.model.width)
        views_flops = crop_flops(self.model, self.augment, spec, head)
        # A backward pass costs two forward passes; the teacher has none, so its crops cost a third of trained crops.
        return sum(views_flops.values()) + views_flops["global"] / 3

    def _project(self, params: Params, images: jax.Array, noise: Any, ctx: Ctx | None = None) -> jax.Array:
        pooled = self.encode_images(params["encoder"], images, noise, ctx)
        logits = apply(self.head.module(output_ratio(self.model)), params["head"], merge(pooled))
        return logits.reshape(*images.shape[:2], -1)

    def _teacher_temperature(self, step: jax.Array) -> jax.Array:
        warm = self.teacher_warmup * (self.steps or 0)
        share = jnp.clip(step / warm, 0, 1) if warm else 1.0
        start = self.teacher_temperature_start
        return jnp.float32(start + (self.teacher_temperature - start) * share)
