"""The decoder of a masked autoencoder (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners")."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
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
    """A light transformer over all patches. The preset "paper" is the paper's; the default suits small encoders."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 1, 2),
        "nano": dims(96, 2, 3),
        "micro": dims(128, 2, 4),
        "paper": dims(512, 8, 16),
    }

    preset: str | None = "micro"
    positions: Literal["sincos", "learned"] = setting(
        "sincos",
        doc="position embeddings; 'sincos': fixed sines and cosines of the patches; 'learned': a table with rows for "
        "the tokens before the patches too",
    )

    def validate(self) -> None:
        TransformerConfig.validate(self)
        width = self.with_preset().known("width")
        if self.positions == "sincos" and width % 4:
            raise ValueError(f"width: sine-cosine positions need a multiple of 4, got {width}")

    def module(self, grid: tuple[int, int], patch_dim: int, input_ratio: float = 1.0) -> "Decoder":
        """The decoder for `grid` patches (rows, columns) of `patch_dim` numbers each; see `Decoder`."""
        return Decoder(self.with_preset(), grid, patch_dim, input_ratio)


class Decoder(nn.Module):
    """A decoder that predicts every patch from the encoded visible patches."""

    config: MAEDecoder  # with preset values filled in
    grid: tuple[int, int]
    patch_dim: int
    input_ratio: float = 1.0  # width ratio of the encoder (`ssljax.layers.width`)

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): the input of the decoder's blocks, or its head."""
        return self.config.known("depth") + 1 if part in ("embed", "mask_token", "positions") else 0

    @nn.compact
    def __call__(
        self, tokens: jax.Array, keep: jax.Array, noise: Noise | None = None, prefix: jax.Array | None = None
    ) -> jax.Array:
        """Predicts all patches, float32 [B, N, patch_dim].

        Args:
            tokens: [B, K, D], the encoded visible patches.
            keep: int [B, K], positions of the visible patches.
            noise: randomness of dropout and stochastic depth; None: neither.
            prefix: [B, P, D], encoded tokens before the patches; None: no such tokens.
        """
        c = self.config
        width, patches = c.known("width"), self.grid[0] * self.grid[1]
        batch, kept = keep.shape
        init = c.initializer() if c.init == "xavier" else c.normal((c.width_ratio / self.input_ratio) ** 0.5)
        options: dict[str, Any] = {"width_ratio": self.input_ratio, "dtype": c.dtype, "name": "embed"}
        embed = Dense(width, ("embed", "mlp"), initializer=init, **options)
        x = embed(tokens)
        hidden = token_vectors(self, "mask_token", 1, width).astype(x.dtype)
        x = jnp.concatenate([x, jnp.broadcast_to(hidden, (batch, 1, width))], axis=1)
        # slot[b, n]: index in x of patch n; hidden patches have the index of the mask token, which is last.
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
        """Forward FLOPs of an image with `kept` encoded patches."""
        c = self.config
        width, patches = c.known("width"), self.grid[0] * self.grid[1]
        embed_and_head = dense_flops(kept, encoder_width, width) + dense_flops(patches, width, self.patch_dim)
        return embed_and_head + stack_flops(c, c.known("depth"), patches)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """A published pair of encoder and decoder; the objective "mae" trains these two modules."""

    inputs: ClassVar[str] = "images"

    encoder: ViTConfig = setting(ViTConfig(preset="base", positions="sincos"), doc="the encoder of visible patches")
    decoder: MAEDecoder = setting(MAEDecoder(preset="paper"), doc="the decoder over all patches")

    def module(self, spec: Any, path: str = "model") -> "Autoencoder":
        """Raises UserError: a run has an autoencoder as encoder and objective, and this class is for whole files."""
        raise UserError(f"{path}.name: an autoencoder is trained by objective 'mae' with model 'vit'")

    def with_preset(self) -> Self:
        """Returns a copy with the values of all presets filled in."""
        return dataclasses.replace(self, encoder=self.encoder.with_preset(), decoder=self.decoder.with_preset())

    def standalone(self) -> "Autoencoder":
        """Encoder and decoder for the encoder's `image_shape`."""
        return Autoencoder(self.with_preset())


class Autoencoder(nn.Module):
    """An encoder of visible patches and a decoder that predicts every patch."""

    config: AutoencoderConfig  # with preset values filled in

    def setup(self) -> None:
        c = self.config
        self.encoder = c.encoder.standalone()
        shape = self.encoder.image_shape
        grid = self.encoder.grid(shape)
        self.decoder = c.decoder.module(grid, c.encoder.patch_size**2 * shape[-1])

    def __call__(self, images: jax.Array, keep: jax.Array, states: bool = False) -> tuple[Encoded, jax.Array]:
        """Returns (encoder outputs for the visible patches, predictions [B, N, patch_dim]).

        Args:
            images: [B, H, W, C].
            keep: int [B, K], positions of the visible patches.
            states: also return the encoder's hidden states between the blocks.
        """
        encoded = self.encoder(images, keep=keep, states=states)
        return encoded, self.decoder(encoded.tokens, keep, prefix=encoded.prefix)

    def initial(self, key: jax.Array) -> Any:
        """Initial variables; needs no data."""
        images = jnp.zeros((1, *(self.config.encoder.image_shape or ())))
        return self.init(key, images, jnp.zeros((1, 1), jnp.int32))
