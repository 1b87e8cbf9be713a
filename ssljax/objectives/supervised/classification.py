"""Supervised classification of images, spectrograms or tokens, the baseline of the other objectives."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.layers.heads import Linear
from ssljax.layers.masks import Full
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of
from ssljax.objectives.images import ImageObjective, view_flops


@dataclasses.dataclass(frozen=True)
class Classification(ImageObjective):
    """Cross-entropy of a linear classifier on the pooled representation.

    Spectrograms are also normalised with `mean` and `std`, but not scaled to [0, 1] before.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images", "tokens", "spectrograms")

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
        batch = self.prepare(batch)
        pixels = batch.get("image", batch.get("spectrogram"))
        if pixels is not None:
            encoder = self.model.init(encoder_key, pixels)["params"]
        else:
            encoder = self.model.init(encoder_key, batch["tokens"], mask=Full())["params"]
        head = self.head().init(head_key, jnp.zeros((1, self.model.width)))["params"]
        return Variables({"encoder": encoder, "head": head}, {})

    def head(self) -> Linear:
        return Linear(self.classes, input_ratio=output_ratio(self.model))

    def prepare(self, batch: Batch) -> Batch:
        return super().prepare(batch) if "image" in batch else batch

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
        return bool(self.mixup or self.cutmix) and "image" in batch

    def _views(self, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns the augmented images (or tokens, or spectrograms) and the target distributions [B, C]."""
        label = batch["label"]
        in_range = (label >= 0) & (label < self.classes)
        # Labels out of range give NaN, as in `losses.cross_entropy`; zeros from one_hot would silently give loss 0.
        target = jnp.where(in_range[:, None], jax.nn.one_hot(label, self.classes), jnp.nan)
        if "image" not in batch:
            names = ("tokens", "segment_ids", "positions", "spectrogram")
            return {"target": target, **{k: batch[k] for k in names if k in batch}}
        return {"image": self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect")), "target": target}

    def held_out(self) -> "Classification":
        """Returns the objective without mixing and augmentation, so that the loss is taken on the prepared images."""
        return dataclasses.replace(self, mixup=0.0, cutmix=0.0, augment=type(self.augment)())

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        pooled = self._encoded(params, inputs, noise_of(ctx), ctx).pooled
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
        encoded = self._encoded(params, batch, None)
        logits = apply(self.head(), params["head"], encoded.pooled)
        return {"pooled": encoded.pooled, "tokens": encoded.tokens, "logits": logits}

    def score(self, params: Params, extra: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        log_probs = jax.nn.log_softmax(self.features(params, extra, batch)["logits"].astype(jnp.float32))
        value = jnp.take_along_axis(log_probs, batch["label"][:, None], 1)[:, 0]
        return value, jnp.ones_like(value)

    def flops(self, spec: Any) -> float:
        head = 2.0 * self.model.width * self.classes
        if "image" in spec.elements:
            return view_flops(self.model, self.augment, spec) + head
        if "spectrogram" in spec.elements:
            return self.model.flops() + head
        return self.model.flops(tokens=spec.max_len, causal=False, predicted=0) + head

    def _encoded(self, params: Params, inputs: Any, noise: Any, ctx: Ctx | None = None) -> Any:
        pixels = inputs.get("image", inputs.get("spectrogram"))
        if pixels is not None:
            return apply(self.model, params["encoder"], self.pixels(pixels), noise=noise, ctx=ctx)
        return apply(
            self.model,
            params["encoder"],
            inputs["tokens"],
            mask=Full(),
            segment_ids=inputs.get("segment_ids"),
            positions=inputs.get("positions"),
            noise=noise,
            ctx=ctx,
        )
