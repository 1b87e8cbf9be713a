"""iBOT: DINO, and a student that predicts the teacher's output at the patches that are hidden from it.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong 2022, "iBOT: Image BERT Pre-Training with Online Tokenizer".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.distillation.dino import DINO, Head
from ssljax.objectives.images import merge, view_shape
from ssljax.objectives.masked.patches import check_token


@dataclasses.dataclass(frozen=True)
class IBOT(DINO):
    """The loss of DINO on pooled vectors, plus `patch_weight` times eq. 2 on masked patches; both share the head.

    The model needs `mask_token=True`, and `pool="cls"` for the class tokens of the paper.
    """

    head: Head = schema.setting(Head(prototypes=8192), doc="projection head of student and teacher")
    augment: Any = schema.setting(
        {"name": "multi_crop", "local_crops": 10, "global_scale": (0.25, 1.0), "local_scale": (0.05, 0.25)},
        registry=views.REGISTRY.only("multi_crop"),
        doc="large and small crops, by default with the recipes of DINO's code and the sizes of iBOT's",
    )

    patch_weight: float = schema.setting(1.0, ge=0, doc="weight of the loss on masked patches")
    mask_ratio: tuple[float, float] = schema.setting(
        (0.1, 0.5), ge=0, le=1, doc="range of the share of patches that a large crop hides"
    )
    mask_probability: float = schema.setting(0.5, ge=0, le=1, doc="share of the large crops that hide patches")

    def validate(self) -> None:
        if self.mask_ratio[0] > self.mask_ratio[1]:
            raise ValueError(f"mask_ratio: got {self.mask_ratio}, the first share must be at most the second")

    def check(self) -> None:
        super().check()
        check_token(self)

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        params, extra = super().init(key, batch)
        return Variables(params, {**extra, "patch_center": jax.tree.map(jnp.copy, extra["center"])})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        crops = super().views(keys, batch, step)
        shape = crops["global"].shape
        rows, columns = self.model.grid((1, *shape[2:]))
        masks = [
            views.random_masks(views.fold_in(keys, 100 + crop), rows * columns, self.mask_ratio, self.mask_probability)
            for crop in range(shape[1])
        ]
        return {**crops, "mask": jnp.stack(masks, 1)}  # [B, G, N]

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        crops, mask = inputs["global"], inputs["mask"]
        small = inputs.get("local")
        total = crops.shape[1] + (0 if small is None else small.shape[1])
        noise = noise_of(ctx, crops.shape[1], 0, total)
        pooled, patches = self._both(params, crops, mask, noise, ctx)
        if small is not None:
            later = noise_of(ctx, small.shape[1], crops.shape[1], total)
            pooled = jnp.concatenate([pooled, self._project(params, small, later, ctx)], 1)
        taught = jax.lax.stop_gradient(self._both(extra["teacher"], crops, None, None))
        return {"student": pooled, "teacher": taught[0], "patches": patches, "taught": taught[1]}

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        found = super().loss(params, extra, outputs, inputs, ctx)
        taught, mask = outputs["taught"].astype(jnp.float32), inputs["mask"]
        center = extra["patch_center"] if self.centering is not None else jnp.zeros_like(extra["patch_center"])
        values, weights = losses.ibot(
            merge(outputs["patches"]),
            merge(taught),
            merge(mask),
            center,
            self.student_temperature,
            self._teacher_temperature(ctx.step),
            reduce=False,
        )
        term = (self.patch_weight, jnp.sum(values * weights), jnp.sum(weights))
        sums = {**found.sums, "patch_center": jnp.sum(jnp.mean(taught, (1, 2)), 0)}
        entropy = losses.entropy(
            jax.nn.softmax((taught - center) / self._teacher_temperature(ctx.step), -1)
        )  # [B, G, N]
        count = jnp.float32(len(taught))
        metrics = {**found.metrics, "patch_entropy": (jnp.sum(jnp.mean(entropy, (1, 2))), count)}
        return found._replace(terms={**found.terms, "ibot": term}, metrics=metrics, sums=sums)

    def update(self, extra: Any, params: Params, sums: Any, rows: Any, step: jax.Array) -> Any:
        decay = 0.0 if self.centering is None else self.centering
        mean = sums["patch_center"] / jnp.maximum(sums["weight"], 1)
        center = decay * extra["patch_center"] + (1 - decay) * mean
        return {**super().update(extra, params, sums, rows, step), "patch_center": center}

    def flops(self, spec: Any) -> float:
        rows, columns = self.model.grid((1, *view_shape(self.augment, spec)))
        head = self.head.module().flops(self.model.width)
        patches = self.augment.global_crops * rows * columns * head
        return super().flops(spec) + patches + patches / 3  # the teacher's have no backward pass

    def _both(
        self, params: Params, images: jax.Array, mask: jax.Array | None, noise: Any, ctx: Ctx | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Logits of pooled features [B, G, K] and of patches [B, G, N, K] of large crops [B, G, h, w, C]."""
        options: dict[str, Any] = {} if mask is None else {"patch_mask": merge(mask)}
        encoded = apply(self.model, params["encoder"], self.pixels(merge(images)), noise=noise, ctx=ctx, **options)
        head = self.head.module(output_ratio(self.model))
        logits = [apply(head, params["head"], x) for x in (encoded.pooled, encoded.tokens)]
        pooled, patches = (x.reshape(*images.shape[:2], *x.shape[1:]) for x in logits)
        return pooled, patches
