"""Vision transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words")."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.layers.block import Stack
from ssljax.layers.dense import Dense, parameter
from ssljax.layers.embeddings import take_tokens, token_vectors
from ssljax.layers.masks import Full
from ssljax.layers.noise import Noise, dropout
from ssljax.layers.positions import resize_table, sincos_2d
from ssljax.models.family import Encoded, Size, TransformerConfig, element_shape, preset
from ssljax.models.flops import dense_flops, stack_flops
from ssljax.views.patches import patchify


@dataclasses.dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    """A vision transformer.

    patch_size: pixels on the side of a patch; must divide both sides of every image and crop.
    pool: "cls" (a class token) or "mean" (of the patch tokens; there is no class token then).
    positions: a learned table, stretched to other image sizes, or fixed sine-cosine (MAE, MoCo v3).
    registers: extra tokens that belong to no patch (Darcet 2024).
    mask_token: a learned vector for hidden patches, where an objective hides patches inside the encoder.
    """

    inputs: ClassVar[str] = "images"
    presets: ClassVar[Mapping[str, Size]] = {
        "pico": preset(64, 2, 2),
        "nano": preset(128, 4, 2),
        "micro": preset(192, 6, 3),
        "tiny": preset(192, 12, 3),
        "small": preset(384, 12, 6),
        "base": preset(768, 12, 12),
        "large": preset(1024, 24, 16),
        "huge": preset(1280, 32, 16),
    }

    size: str | None = "tiny"
    patch_size: int = setting(16, ge=1)
    pool: Literal["cls", "mean"] = "cls"
    positions: Literal["learned", "sincos"] = "learned"
    registers: int = setting(0, ge=0)
    mask_token: bool = False

    def validate(self) -> None:
        TransformerConfig.validate(self)
        width = self.resolved().known("width")
        if self.positions == "sincos" and width % 4:
            raise ValueError(f"width: sine-cosine positions need a multiple of 4, got {width}")

    def module(self, spec: Any, path: str = "model") -> "ViT":
        """The encoder for the images of `spec`."""
        shape = element_shape(spec, "image", f"{path}.name")
        module = ViT(self.resolved(), shape, path)
        module.grid((1, *shape))
        return module


class ViT(nn.Module):
    """Images [B, H, W, C] to patch tokens and a pooled vector."""

    config: ViTConfig  # resolved
    image_shape: tuple[int, ...]  # [H, W, C] of the learned positions; other sizes are read too
    path: str = "model"  # config key of the group, for messages

    @property
    def width(self) -> int:
        """Width of the tokens and of the pooled vector."""
        return self.config.known("width")

    @property
    def patch_size(self) -> int:
        """Pixels on the side of a patch."""
        return self.config.patch_size

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(rows, columns) of patches of images [B, H, W, C]; UserError if patches do not tile them."""
        height, width = shape[-3:-1]
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"{self.path}.patch_size: {self.patch_size} does not divide the image size {height}x{width} "
                f"(a divisor of both is required)"
            )
        return height // self.patch_size, width // self.patch_size

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        keep: jax.Array | None = None,
        patch_mask: jax.Array | None = None,
        noise: Noise | None = None,
    ) -> Encoded:
        """Encodes images.

        Args:
            images: [B, H, W, C], normalised.
            keep: int32 [B, K]; only these patches are encoded (MAE). All of them if None.
            patch_mask: bool [B, N], True = the patch is replaced by the mask token (needs `mask_token`).
            noise: for dropout and stochastic depth; None = neither.

        Returns:
            tokens [B, N or K, D] of the patches, without class token and registers, and pooled [B, D].
        """
        c = self.config
        width, grid = self.width, self.grid(images.shape)
        table = self._positions(grid)
        x = patchify(images, self.patch_size)
        if keep is not None:  # before the projection, so that hidden patches cost nothing
            x = take_tokens(x, keep)
        x = Dense(width, ("patch", "embed"), bias=True, initializer=c.initializer(), dtype=c.dtype, name="patch")(x)
        if c.mask_token:
            token = token_vectors(self, "mask_token", 1, width).astype(c.dtype)
            if patch_mask is not None:
                hidden = patch_mask if keep is None else jnp.take_along_axis(patch_mask, keep, axis=1)
                x = jnp.where(hidden[..., None], token, x)
        elif patch_mask is not None:
            raise UserError(f"{self.path}.mask_token: false, but the objective hides patches inside the encoder")
        table = table.astype(c.dtype)
        x = x + (table[None] if keep is None else jnp.take(table, keep, axis=0))
        extra = []
        if c.pool == "cls":
            extra.append(token_vectors(self, "class_token", 1, width))
        if c.registers:
            extra.append(token_vectors(self, "registers", c.registers, width))
        if extra:
            front = jnp.concatenate(extra).astype(c.dtype)
            x = jnp.concatenate([jnp.broadcast_to(front, (x.shape[0], *front.shape)), x], axis=1)
        if noise is not None:
            x = dropout(x, c.dropout, noise.at("embedding"))
        x, _ = Stack(c, c.known("depth"), name="stack")(x, Full(), noise=noise)
        tokens = x[:, sum(e.shape[0] for e in extra) :]
        pooled = x[:, 0] if c.pool == "cls" else jnp.mean(tokens.astype(jnp.float32), axis=1).astype(x.dtype)
        return Encoded(tokens, pooled)

    def _positions(self, grid: tuple[int, int]) -> jax.Array:
        """[N, D] at this grid."""
        if self.config.positions == "sincos":
            return jnp.asarray(sincos_2d(grid, self.width))
        own = self.grid(self.image_shape)
        shape = (own[0] * own[1], self.width)
        table = parameter(self, "positions", nn.initializers.normal(0.02), ("positions", "embed"), shape)
        return resize_table(table, own, grid)

    def flops(self, tokens: int | None = None, image_shape: tuple[int, ...] | None = None) -> float:
        """Forward FLOPs of an image, or of `tokens` kept patches of one."""
        shape = image_shape or self.image_shape
        rows, columns = self.grid(shape)
        patches = rows * columns if tokens is None else tokens
        length = patches + (self.config.pool == "cls") + self.config.registers
        patch_dim = self.patch_size**2 * shape[-1]
        return dense_flops(patches, patch_dim, self.width) + stack_flops(
            self.config, self.config.known("depth"), length
        )
