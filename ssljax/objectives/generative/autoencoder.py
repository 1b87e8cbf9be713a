"""Autoencoders: an image is restored from a code of few numbers.

Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks"; Vincent, Larochelle, Bengio,
Manzagol 2008, "Extracting and Composing Robust Features with Denoising Autoencoders".
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ssljax import losses, parallel, views
from ssljax.base import schema
from ssljax.base.exhibits import Exhibit, Grid, Tile
from ssljax.layers.heads import MLPHead
from ssljax.layers.width import output_ratio
from ssljax.objectives.base import Batch, Ctx, Loss, Params, Variables, apply, noise_of, still, views_of
from ssljax.objectives.images import ImageObjective, unaugmented, view_flops, view_shape
from ssljax.objectives.pictures import Showing


@dataclasses.dataclass(frozen=True)
class ImageDecoder:
    """A decoder from codes to pixels: `layers` linear maps with GELU between them."""

    hidden: int = schema.setting(512, gt=0, doc="width of the hidden layers")
    layers: int = schema.setting(2, gt=0, doc="number of linear maps; 1: a linear decoder")

    def module(self, pixels: int) -> MLPHead:
        """The decoder to images of `pixels` numbers."""
        return MLPHead((self.hidden,) * (self.layers - 1) + (pixels,), norm=None, activation="gelu")


@dataclasses.dataclass(frozen=True)
class Autoencoder(ImageObjective):
    """Squared error of the normalised pixels, restored from a code.

    The code is a linear map of the features of all places side by side, since their mean would lose the places.
    """

    code: int = schema.setting(32, gt=0, doc="number of numbers of a code")
    decoder: ImageDecoder = schema.setting(ImageDecoder(), doc="decoder, not used after training")
    noise: Literal["gaussian", "masking", "salt_and_pepper"] | None = schema.setting(
        None,
        doc="noise of the input, not of the target (denoising autoencoder); 'masking': pixels become 0; "
        "'salt_and_pepper': they become 0 or 1; None: none",
    )
    noise_level: float = schema.setting(
        0.25,
        ge=0,
        doc="standard deviation of 'gaussian' for values in [0, 1], which stay there; else the share of the pixels",
    )
    augment: Any = schema.setting(
        {"name": "single"}, registry=views.REGISTRY.only("single"), doc="augmentation of images; none by default"
    )

    def validate(self) -> None:
        if self.noise in ("masking", "salt_and_pepper") and self.noise_level > 1:
            raise ValueError(f"noise_level: got {self.noise_level:g}, must be at most 1, the share of the pixels")

    @property
    def codes(self) -> int:
        """Number of outputs of the map from features."""
        return self.code

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        encoder_key, code_key, decoder_key = jax.random.split(key, 3)
        height, width, _ = view_shape(self.augment, self.spec)
        images = views.resize(self.prepare(batch)["image"][:1], (height, width))
        encoder = self.model.init(encoder_key, images)["params"]
        code = self._code().init(code_key, jnp.zeros((1, self._features())))["params"]
        decoder = self._decoder().init(decoder_key, jnp.zeros((1, self.code)))["params"]
        return Variables({"encoder": encoder, "code": code, "decoder": decoder}, {})

    def views(self, keys: jax.Array, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        target = self.augment(views.fold_in(keys, 0), batch["image"], batch.get("aspect"))
        return {"image": self._noisy(views.fold_in(keys, 1), target), "target": target}

    def held_out(self) -> "Autoencoder":
        return dataclasses.replace(self, augment=unaugmented(self.augment))

    def encode(self, params: Params, extra: Any, inputs: Any, ctx: Ctx) -> dict[str, jax.Array]:
        code = self.coded(params, inputs["image"], noise_of(ctx), ctx)
        return {"code": code, "pixels": apply(self._decoder(), params["decoder"], code)}

    def coded(self, params: Params, images: jax.Array, noise: Any, ctx: Ctx | None = None) -> jax.Array:
        """Outputs [B, codes] of the map from features, of images in [0, 1] of the size of views."""
        tokens = apply(self.model, params["encoder"], self.pixels(images), noise=noise, ctx=ctx).tokens
        return apply(self._code(), params["code"], tokens.reshape(len(images), -1))

    def error(self, outputs: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
        """Squared errors, mean over the pixels of an image, and weights; [B] each."""
        target = self.pixels(inputs["target"])
        return losses.mse(outputs["pixels"].reshape(target.shape), target, reduce=False)

    def loss(self, params: Params, extra: Any, outputs: Any, inputs: Any, ctx: Ctx) -> Loss:
        values, weights = self.error(outputs, inputs)
        return Loss({"mse": (1.0, jnp.sum(values * weights), jnp.sum(weights))})

    def features(self, params: Params, extra: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns features of the encoder, `code` [B, code], and `pixels` and `reconstruction` [B, H W C] in [0, 1].

        `pixels` are those of the image that the code was made from, in the size of views.
        """
        height, width, _ = view_shape(self.augment, self.spec)
        images = views.resize(batch["image"], (height, width))
        code = self.coded(params, images, None)[:, : self.code]
        made = apply(self._decoder(), params["decoder"], code).reshape(images.shape)
        made = views.unnormalize(made, self.mean, self.std)
        flat = {name: x.reshape(len(images), -1) for name, x in (("pixels", images), ("reconstruction", made))}
        return {**super().features(params, extra, batch), "code": code, **flat}

    def restored(self, params: Params, extra: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, ...]:
        """Returns (images, inputs, restored images), each [B, H, W, C] in [0, 1]."""
        inputs = views_of(self, key, batch, jnp.int32(0))
        made = self.encode(params, extra, inputs, still(key, batch))["pixels"].reshape(inputs["target"].shape)
        return inputs["target"], inputs["image"], jnp.clip(views.unnormalize(made, self.mean, self.std), 0, 1)

    def pictures(self, params: Params, extra: Any, batch: Batch, show: Showing) -> dict[str, Exhibit]:
        images, noisy, made = jax.jit(self.held_out().restored)(params, extra, views.centered(batch), show.key)
        columns = {"original": images, **({"input": noisy} if self.noise else {}), "reconstruction": made}
        rows = zip(*(parallel.fetch(column)[: show.rows] for column in columns.values()))
        tiles = [[Tile(image) for image in row] for row in rows]
        caption = f"Held-out images (central squares), restored from codes of {self.code} numbers."
        return {"reconstruction": Grid("Reconstruction", caption, tiles, tuple(columns))}

    def flops(self, spec: Any) -> float:
        heads = self._code().flops(self._features()) + self._decoder().flops(self.code)
        return view_flops(self.model, self.augment, spec) + heads

    def _code(self) -> MLPHead:
        return MLPHead((self.codes,), norm=None, input_ratio=output_ratio(self.model))

    def _features(self) -> int:
        """Number of features of all places of a view."""
        image = jax.ShapeDtypeStruct((1, *view_shape(self.augment, self.spec)), jnp.float32)
        encoded, _ = jax.eval_shape(self.model.init_with_output, jax.random.key(0), image)
        return math.prod(encoded.tokens.shape[1:])

    def _decoder(self) -> MLPHead:
        height, width, channels = view_shape(self.augment, self.spec)
        return self.decoder.module(height * width * channels)

    def _noisy(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        if self.noise is None or not self.noise_level:
            return images
        shape = images.shape[1:]
        if self.noise == "gaussian":
            draw = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
            return jnp.clip(images + self.noise_level * draw, 0, 1)
        # All channels of a pixel have one fate.
        u = jax.vmap(lambda key: jax.random.uniform(key, (2, *shape[:2])))(keys)[..., None]
        replaced = jnp.zeros_like(images) if self.noise == "masking" else jnp.round(u[:, 1]).astype(images.dtype)
        return jnp.where(u[:, 0] < self.noise_level, replaced, images)
