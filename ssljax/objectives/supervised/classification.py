"""Supervised classification of images, spectrograms or tokens, the baseline of the other objectives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.layers.heads import Linear
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.encoder import EncoderObjective


@dataclasses.dataclass(frozen=True)
class Classification(EncoderObjective):
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

    @property
    def classes(self) -> int:
        if not self.spec.num_classes:
            raise UserError("objective.name: 'classification' needs labels, and data.source has none")
        return self.spec.num_classes

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, head_key = jax.random.split(key)
        encoder = self.init_encoder(encoder_key, batch)
        head = self.head().init(head_key, jnp.zeros((1, self.model.width)))["params"]
        return Variables({"encoder": encoder, "head": head}, {})

    def head(self) -> Linear:
        return Linear(self.classes, input_ratio=output_ratio(self.model))

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
        """Returns the augmented images (or tokens, or spectrograms) and the target distributions [B, C]."""
        label = batch["label"]
        in_range = (label >= 0) & (label < self.classes)
        # Labels out of range give NaN, as in `losses.cross_entropy`; zeros from one_hot would silently give loss 0.
        target = jnp.where(in_range[:, None], jax.nn.one_hot(label, self.classes), jnp.nan)
        if not self.augmented:
            return {"target": target, **self.read(batch)}
        return {"image": self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect")), "target": target}

    def held_out(self) -> "Classification":
        """Returns the objective without mixing and augmentation, so that the loss is taken on the prepared images."""
        return dataclasses.replace(self, mixup=0.0, cutmix=0.0, augment=type(self.augment)())

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        pooled = self.encoded(params["encoder"], inputs, noise_of(ctx), ctx).pooled
        return apply(self.head(), params["head"], pooled)  # [B, C]

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        values, weights = losses.cross_entropy(outputs, inputs["target"], smoothing=self.label_smoothing, reduce=False)
        weight = jnp.sum(weights)
        right = jnp.argmax(outputs, -1) == jnp.argmax(inputs["target"], -1)
        return Loss(
            {"cross_entropy": (1.0, jnp.sum(values * weights), weight)},
            {"accuracy": (jnp.sum(right * weights), weight)},
        )

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        encoded = self.encoded(params["encoder"], batch, None)
        logits = apply(self.head(), params["head"], encoded.pooled)
        return {"pooled": encoded.pooled, "tokens": encoded.tokens, "logits": logits}

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        log_probs = jax.nn.log_softmax(self.features(params, extra, batch)["logits"].astype(jnp.float32))
        value = jnp.take_along_axis(log_probs, batch["label"][:, None], 1)[:, 0]
        return value, jnp.ones_like(value)

    def flops(self, spec: Any) -> float:
        return self.encoder_flops(self.augment, spec) + 2.0 * self.model.width * self.classes
