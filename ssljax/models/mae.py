"""The decoder of a masked autoencoder (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners")."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.layers.dense import Dense, parameter
from ssljax.layers.embeddings import take_tokens, token_vectors
from ssljax.layers.masks import Full
from ssljax.layers.noise import Noise
from ssljax.layers.positions import sincos_2d
from ssljax.layers.stack import Stack
from ssljax.models.family import Encoded, Preset, TransformerConfig, dims
from ssljax.models.flops import dense_flops, stack_flops
from ssljax.models.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class MAEDecoder(TransformerConfig):
    """A light transformer over all patches; the paper's is size "paper", the default is for small encoders.

    positions: fixed sine-cosine; or a learned table, with rows for the tokens before the patches too.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 1, 2),
        "nano": dims(96, 2, 3),
        "micro": dims(128, 2, 4),
        "paper": dims(512, 8, 16),
    }

    preset: str | None = "micro"
    positions: Literal["sincos", "learned"] = "sincos"

    def validate(self) -> None:
        TransformerConfig.validate(self)
        width = self.with_preset().known("width")
        if self.positions == "sincos" and width % 4:
            raise ValueError(f"width: sine-cosine positions need a multiple of 4, got {width}")

    def module(self, grid: tuple[int, int], patch_dim: int) -> "Decoder":
        """The decoder for `grid` patches (rows, columns) of `patch_dim` numbers each."""
        return Decoder(self.with_preset(), grid, patch_dim)


class Decoder(nn.Module):
    """Encoded visible patches to a prediction for every patch."""

    config: MAEDecoder  # resolved
    grid: tuple[int, int]
    patch_dim: int

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): the input of the decoder's blocks, or its head."""
        return self.config.known("depth") + 1 if part in ("embed", "mask_token", "positions") else 0

    @nn.compact
    def __call__(
        self, tokens: jax.Array, keep: jax.Array, noise: Noise | None = None, prefix: jax.Array | None = None
    ) -> jax.Array:
        """tokens [B, K, D] of the patches keep int [B, K] -> predictions float32 [B, N, patch_dim].

        prefix [B, P, D]: tokens that stand before those of the patches and nowhere in the image.
        """
        c = self.config
        width, patches = c.known("width"), self.grid[0] * self.grid[1]
        batch, kept = keep.shape
        embed = Dense(width, ("embed", "mlp"), initializer=c.initializer(), dtype=c.dtype, name="embed")
        x = embed(tokens)
        hidden = token_vectors(self, "mask_token", 1, width).astype(x.dtype)
        x = jnp.concatenate([x, jnp.broadcast_to(hidden, (batch, 1, width))], axis=1)
        # slot[b, n]: where patch n stands among the kept ones, or the mask token behind them.
        rows = jnp.arange(batch)[:, None]
        slot = jnp.full((batch, patches), kept, jnp.int32).at[rows, keep].set(jnp.arange(kept, dtype=jnp.int32))
        x = take_tokens(x, slot)
        if c.positions == "sincos":
            x = x + jnp.asarray(sincos_2d(self.grid, width), x.dtype)
        if prefix is not None:
            x = jnp.concatenate([embed(prefix), x], axis=1)
        if c.positions == "learned":
            shape = (x.shape[1], width)
            init, names = nn.initializers.normal(0.02), ("positions", "embed")
            x = x + parameter(self, "positions", init, names, shape, role="position")
        x, _ = Stack(c, c.known("depth"), name="stack")(x, Full(), noise=noise)
        x = x[:, x.shape[1] - patches :]
        head = Dense(
            self.patch_dim, ("embed", "patch"), initializer=c.initializer(), dtype=c.dtype, role="head", name="head"
        )
        return head(x).astype(jnp.float32)

    def flops(self, kept: int, encoder_width: int) -> float:
        """Forward FLOPs of an image of which `kept` patches were encoded."""
        c = self.config
        width, patches = c.known("width"), self.grid[0] * self.grid[1]
        ends = dense_flops(kept, encoder_width, width) + dense_flops(patches, width, self.patch_dim)
        return ends + stack_flops(c, c.known("depth"), patches)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Encoder and decoder as they were published together; the objective "mae" trains the same two."""

    inputs: ClassVar[str] = "images"

    encoder: ViTConfig = setting(ViTConfig(preset="base", positions="sincos"))
    decoder: MAEDecoder = setting(MAEDecoder(preset="paper"))

    def with_preset(self) -> Self:
        """The same with the numbers of both sizes filled in."""
        return dataclasses.replace(self, encoder=self.encoder.with_preset(), decoder=self.decoder.with_preset())

    def standalone(self) -> "Autoencoder":
        """Both for the encoder's `image_shape`."""
        return Autoencoder(self.with_preset())


class Autoencoder(nn.Module):
    """Images [B, H, W, C] and the patches to keep, to a prediction for every patch."""

    config: AutoencoderConfig  # resolved

    def setup(self) -> None:
        c = self.config
        self.encoder = c.encoder.standalone()
        shape = self.encoder.image_shape
        grid = self.encoder.grid(shape)
        self.decoder = c.decoder.module(grid, c.encoder.patch_size**2 * shape[-1])

    def __call__(self, images: jax.Array, keep: jax.Array, states: bool = False) -> tuple[Encoded, jax.Array]:
        """What the encoder makes of the patches keep int [B, K], and predictions [B, N, patch_dim]."""
        encoded = self.encoder(images, keep=keep, states=states)
        return encoded, self.decoder(encoded.tokens, keep, prefix=encoded.prefix)

    def initial(self, key: jax.Array) -> Any:
        """Variables from a key, no data needed."""
        images = jnp.zeros((1, *(self.config.encoder.image_shape or ())))
        return self.init(key, images, jnp.zeros((1, 1), jnp.int32))
