"""The decoder of a masked autoencoder (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners")."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers.block import Stack
from ssljax.layers.dense import Dense
from ssljax.layers.embeddings import take_tokens, token_vectors
from ssljax.layers.masks import Full
from ssljax.layers.noise import Noise
from ssljax.layers.positions import sincos_2d
from ssljax.models.family import Size, TransformerConfig, preset
from ssljax.models.flops import dense_flops, stack_flops


@dataclasses.dataclass(frozen=True)
class MAEDecoder(TransformerConfig):
    """A light transformer over all patches; the paper's is size "paper", the default is for small encoders."""

    presets: ClassVar[Mapping[str, Size]] = {
        "pico": preset(64, 1, 2),
        "nano": preset(96, 2, 3),
        "micro": preset(128, 2, 4),
        "paper": preset(512, 8, 16),
    }

    size: str | None = "micro"

    def validate(self) -> None:
        TransformerConfig.validate(self)
        width = self.resolved().known("width")
        if width % 4:
            raise ValueError(f"width: sine-cosine positions need a multiple of 4, got {width}")

    def module(self, grid: tuple[int, int], patch_dim: int) -> "Decoder":
        """The decoder for `grid` patches (rows, columns) of `patch_dim` numbers each."""
        return Decoder(self.resolved(), grid, patch_dim)


class Decoder(nn.Module):
    """Encoded visible patches to a prediction for every patch."""

    config: MAEDecoder  # resolved
    grid: tuple[int, int]
    patch_dim: int

    @nn.compact
    def __call__(self, tokens: jax.Array, keep: jax.Array, noise: Noise | None = None) -> jax.Array:
        """tokens [B, K, D] of the patches keep int [B, K] -> predictions float32 [B, N, patch_dim]."""
        c = self.config
        width, patches = c.known("width"), self.grid[0] * self.grid[1]
        batch, kept = keep.shape
        names = ("embed", "mlp")
        x = Dense(width, names, initializer=c.initializer(), dtype=c.dtype, name="embed")(tokens)
        hidden = token_vectors(self, "mask_token", 1, width).astype(x.dtype)
        x = jnp.concatenate([x, jnp.broadcast_to(hidden, (batch, 1, width))], axis=1)
        # slot[b, n]: where patch n stands among the kept ones, or the mask token behind them.
        rows = jnp.arange(batch)[:, None]
        slot = jnp.full((batch, patches), kept, jnp.int32).at[rows, keep].set(jnp.arange(kept, dtype=jnp.int32))
        x = take_tokens(x, slot) + jnp.asarray(sincos_2d(self.grid, width), x.dtype)
        x, _ = Stack(c, c.known("depth"), name="stack")(x, Full(), noise=noise)
        head = Dense(self.patch_dim, ("embed", "patch"), initializer=c.initializer(), dtype=c.dtype, name="head")
        return head(x).astype(jnp.float32)

    def flops(self, kept: int, encoder_width: int) -> float:
        """Forward FLOPs of an image of which `kept` patches were encoded."""
        c = self.config
        width, patches = c.known("width"), self.grid[0] * self.grid[1]
        ends = dense_flops(kept, encoder_width, width) + dense_flops(patches, width, self.patch_dim)
        return ends + stack_flops(c, c.known("depth"), patches)
