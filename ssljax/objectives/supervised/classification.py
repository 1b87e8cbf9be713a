"""Supervised classification of images, spectrograms, graphs or tokens, the baseline of the other objectives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.objectives.base import Batch, Ctx, Loss, Params
from ssljax.objectives.supervised.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class Classification(Classifier):
    """Cross-entropy of a linear classifier on the pooled representation."""

    label_smoothing: float = schema.setting(
        0.0, ge=0, lt=1, doc="share of the target's mass that is spread evenly over all classes (Szegedy et al. 2016)"
    )
    mixup: float = schema.setting(
        0.0,
        ge=0,
        doc="alpha of mixup: the mixing weight is drawn from Beta(alpha, alpha) (Zhang et al. 2018); images only; 0: "
        "no mixup",
    )
    cutmix: float = schema.setting(
        0.0,
        ge=0,
        doc="alpha of CutMix: the pasted share of the image is drawn from Beta(alpha, alpha) (Yun et al. 2019); images "
        "only; 0: no CutMix",
    )
    augment: Any = schema.setting(
        {"name": "single"}, registry=views.REGISTRY.only("single"), doc="augmentation of images; none by default"
    )

    def validate(self) -> None:
        if self.mixup and self.cutmix:
            raise ValueError("cutmix: mixup and cutmix exclude each other; set one of them to 0")

    def mixed(self, keys: jax.Array, batch: Batch, step: jax.Array) -> Batch:
        """Returns augmented and mixed images with their soft labels, if images are to be mixed."""
        if not self._mixes(batch):
            return batch
        single = self._views(keys, self.prepare(batch))
        mix, alpha = (views.mixup, self.mixup) if self.mixup else (views.cutmix, self.cutmix)
        images, target = mix(views.fold_in(keys, 1), single["image"], single["target"], alpha)
        return {"image": images, "target": target}

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        return batch if self._mixes(batch) else self._views(keys, batch)

    def _mixes(self, batch: Batch) -> bool:
        return bool(self.mixup or self.cutmix) and self.augmented

    def _views(self, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns the augmented images (or tokens, spectrograms, graphs) and the target distributions [B, C]."""
        target = self.target(batch["label"])
        if not self.augmented:
            return {"target": target, **self.read(batch)}
        return {"image": self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect")), "target": target}

    def held_out(self) -> "Classification":
        """Returns the objective without mixing and augmentation, so that the loss is taken on the prepared images."""
        return dataclasses.replace(self, mixup=0.0, cutmix=0.0, augment=type(self.augment)())

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        values, weights = losses.cross_entropy(outputs, inputs["target"], smoothing=self.label_smoothing, reduce=False)
        weight = jnp.sum(weights)
        right = jnp.argmax(outputs, -1) == jnp.argmax(inputs["target"], -1)
        return Loss(
            {"cross_entropy": (1.0, jnp.sum(values * weights), weight)},
            {"accuracy": (jnp.sum(right * weights), weight)},
        )

    def flops(self, spec: Any) -> float:
        return self.encoder_flops(self.augment, spec) + 2.0 * self.model.width * self.classes
