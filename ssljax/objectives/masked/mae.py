"""Masked autoencoder: an encoder reads the visible quarter of the patches; a light decoder reconstructs the others.

He, Chen, Xie, Li, Dollar, Girshick 2022, "Masked Autoencoders Are Scalable Vision Learners".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ssljax import losses, views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Exhibit
from ssljax.layers.width import output_ratio
from ssljax.models.mae import MAEDecoder
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of, still, views_of
from ssljax.objectives.images import unaugmented
from ssljax.objectives.masked.patches import (
    PatchObjective,
    check_fixed,
    check_masks,
    masked_images,
    places_of,
    restored_images,
    run_share,
)
from ssljax.objectives.pictures import Showing


@dataclasses.dataclass(frozen=True)
class MAE(PatchObjective):
    """Mean squared error of the reconstruction of masked patches, of images or spectrograms."""

    mask_ratio: float = schema.setting(0.75, gt=0, lt=1, doc="share of masked patches")
    normalize_targets: bool = schema.setting(
        True, doc="normalise each target patch by its own mean and variance (section 4.1, 'reconstruction target')"
    )
    masking: Any = schema.setting(
        {"name": "random"}, registry=views.MASKINGS, doc="which patches are masked, and which of the others are seen"
    )
    decoder: MAEDecoder = schema.setting(MAEDecoder(), doc="decoder over all patches, not used after training")

    def check(self) -> None:
        super().check()
        check_masks(self)
        check_fixed(self)
        _, _, channels = self.shape
        if self.normalize_targets and self.model.patch_size**2 * channels == 1:
            raise UserError(
                "objective.normalize_targets: got True, but a patch of one value has no variance "
                "(set it to false, or model.patch_size to at least 2)"
            )

    @property
    def total_dependent(self) -> bool:
        return bool(self.masking.grows)

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, decoder_key = jax.random.split(key)
        images = self.prepare(batch)["image"][:1]
        inputs = views_of(self, key, {"image": images}, jnp.int32(0))
        encoder = self.model.init(encoder_key, images)["params"]
        kept, front = (jnp.zeros((1, n, self.model.width)) for n in (inputs["keep"].shape[1], self.model.config.prefix))
        decoder = self._decoder(images.shape).init(decoder_key, kept, inputs["keep"], prefix=front)["params"]
        return Variables({"encoder": encoder, "decoder": decoder}, {})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        images = self.augmented(views.fold_in(keys, 0), batch)
        rows, columns = self.model.grid(images.shape)
        made = self.masking(views.fold_in(keys, 1), (rows, columns), self.mask_ratio, run_share(self, step))
        keep = places_of(made.visible, self.masking.seen(rows * columns, self.mask_ratio))
        return {"image": images, "keep": keep, "mask": made.target}

    def held_out(self) -> "MAE":
        return dataclasses.replace(self, augment=unaugmented(self.augment), masking=self.masking.last())

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> jax.Array:
        images, noise = self.pixels(inputs["image"]), noise_of(ctx)
        encoded = apply(self.model, params["encoder"], images, keep=inputs["keep"], noise=noise, ctx=ctx)
        decoder = self._decoder(images.shape)
        noise = None if noise is None else noise.at("decoder")
        keywords = {"noise": noise, "prefix": encoded.prefix, "ctx": ctx, "part": "decoder"}
        return apply(decoder, params["decoder"], encoded.tokens, inputs["keep"], **keywords)  # [B, N, P]

    def loss(self, params: Params, extra: Any, outputs: jax.Array, inputs: Any, ctx: Ctx) -> Loss:
        images = self.pixels(inputs["image"])
        values, weights = losses.masked_patches(
            images, outputs, inputs["mask"], self.model.patch_size, self.normalize_targets, reduce=False
        )
        return Loss({"mse": (1.0, jnp.sum(values * weights), jnp.sum(weights))})

    def reconstructed(
        self, params: Params, extra: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (images, masked images, reconstructed images), each [B, H, W, C] in [0, 1]."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        images, mask = inputs["image"], inputs["mask"]
        predicted = self.encode(params, extra, inputs, still(key, batch))
        hidden = masked_images(self.visible(images), mask, self.model.patch_size)
        return self.visible(images), hidden, restored_images(self, images, mask, predicted, self.normalize_targets)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        made = jax.jit(self.held_out().reconstructed)(params, extra, views.centered(batch), show.key)
        caption = f"with {self.mask_ratio:.0%} of their patches masked, restored."
        if self.normalize_targets:
            caption += (
                " Restored patches have the mean and the variance of the true ones, since the loss leaves both out."
            )
        return {"reconstruction": self.columns(made, show.rows, caption)}

    def flops(self, spec: Any) -> float:
        shape = (1, *self.shape)
        rows, columns = self.model.grid(shape)
        kept = self.masking.seen(rows * columns, self.mask_ratio)
        encoder = self.encoder_flops(kept)
        return encoder + self._decoder(shape).flops(kept, self.model.width)

    def _decoder(self, shape: tuple[int, ...]) -> Any:
        """The decoder module for images of `shape` [B, H, W, C]."""
        return self.decoder.module(
            self.model.grid(shape), self.model.patch_size**2 * shape[-1], output_ratio(self.model)
        )
