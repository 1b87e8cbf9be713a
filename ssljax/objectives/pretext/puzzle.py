"""Base class of puzzles: views of an image, and a label that says how they were made."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.layers.heads import MLPHead
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.images import ImageObjective, unaugmented, view_shape


@dataclasses.dataclass(frozen=True)
class Puzzle(ImageObjective):
    """Cross-entropy of a classifier on the features of the views of an image, encoded one by one."""

    answers: ClassVar[int] = 0  # number of labels
    each: ClassVar[bool] = False  # True: each view has a label; False: all views of an image together have one

    hidden: int = schema.setting(0, ge=0, doc="width of a hidden layer of the classifier; 0: none")
    augment: Any = schema.setting(
        {"name": "single"},
        registry=views.REGISTRY.only("single"),
        doc="augmentation of the image before the puzzle is made; none by default",
    )

    def puzzle(self, keys: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns views [B, V, h, w, C] of images [B, H, W, C] in [0, 1], and labels int [B], or [B, V] if `each`."""
        raise NotImplementedError

    def size(self, side: tuple[int, int]) -> tuple[int, int, int]:
        """Returns number, height and width of the views of an image of height and width `side`."""
        raise NotImplementedError

    @property
    def number(self) -> int:
        """Number of labels."""
        return self.answers

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, head_key = jax.random.split(key)
        images = self.prepare(batch)["image"]
        encoder = self.model.init(encoder_key, images)["params"]
        count = 1 if self.each else self.size(images.shape[1:3])[0]
        head = self._head().init(head_key, jnp.zeros((1, count * self.model.width)))["params"]
        return Variables({"encoder": encoder, "head": head}, {})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        images = self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect"))
        made, label = self.puzzle(views.fold_in(keys, 1), images)
        return {"image": made, "label": label}

    def held_out(self) -> "Puzzle":
        return dataclasses.replace(self, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        count = inputs["image"].shape[1]
        pooled = self.encode_images(params["encoder"], inputs["image"], noise_of(ctx, count), ctx)  # [B, V, D]
        joined = pooled if self.each else pooled.reshape(len(pooled), -1)
        return apply(self._head(), params["head"], joined)  # [B, V, L] or [B, L]

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        logits, labels = outputs.reshape(-1, outputs.shape[-1]), inputs["label"].reshape(-1)
        values, weights = losses.cross_entropy(logits, labels, reduce=False)
        weight = jnp.sum(weights)
        right = jnp.argmax(logits, -1) == labels
        return Loss(
            {"cross_entropy": (1.0, jnp.sum(values * weights), weight)},
            {"accuracy": (jnp.sum(right * weights), weight)},
        )

    def flops(self, spec: Any) -> float:
        height, width, channels = view_shape(self.augment, spec)
        count, *view = self.size((height, width))
        head = self._head()
        joined = count * head.flops(self.model.width) if self.each else head.flops(count * self.model.width)
        return float(count * self.model.flops(image_shape=(*view, channels)) + joined)

    def _head(self) -> MLPHead:
        features = (self.hidden, self.number) if self.hidden else (self.number,)
        return MLPHead(features, norm=None, input_ratio=output_ratio(self.model))
