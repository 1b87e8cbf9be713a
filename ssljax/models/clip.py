"""CLIP (Radford et al. 2021): two towers into one space."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.layers.dense import Dense, parameter
from ssljax.layers.masks import Causal, Full
from ssljax.layers.noise import Noise
from ssljax.models.family import Size, preset
from ssljax.models.gpt import GPTConfig
from ssljax.models.tokens import TokenTransformer
from ssljax.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class TextConfig(GPTConfig):
    """The text tower: GPT-2's block, pooled at the last token."""

    presets: ClassVar[Mapping[str, Size]] = {
        "pico": preset(64, 2, 2),
        "nano": preset(128, 4, 2),
        "micro": preset(192, 6, 3),
        "base": preset(512, 12, 8),
        "large": preset(768, 12, 12),
    }

    size: str | None = "nano"
    pool: Literal["first", "last", "mean"] = "last"
    attention: Literal["causal", "full"] = "causal"  # a token sees those up to itself, or all; `pool` is chosen apart


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """A pair of encoders, each projected without bias to `embed_dim`."""

    inputs: ClassVar[str] = "pairs"

    image: ViTConfig = setting(ViTConfig(size="nano"))
    text: TextConfig = setting(TextConfig())
    embed_dim: int = setting(128, ge=1)  # width of the space that both share
    temperature: float = setting(0.07, gt=0)  # at the start; it is learned

    def module(self, spec: Any, path: str = "model") -> "CLIP":
        """The two towers for the images and tokens of `spec`."""
        image = self.image.module(spec, f"{path}.image")
        text = self.text.module(spec, f"{path}.text")
        return CLIP(self, image.config, image.image_shape, text.config)


class CLIP(nn.Module):
    """Images and texts to vectors [B, embed_dim], not normalised (the loss does that)."""

    config: CLIPConfig
    image_config: ViTConfig  # resolved
    image_shape: tuple[int, ...]
    text_config: Any  # TextConfig, resolved

    @property
    def width(self) -> int:
        """Width of the shared space."""
        return self.config.embed_dim

    def setup(self) -> None:
        self.image_tower = ViT(self.image_config, self.image_shape, "model.image")
        self.text_tower = TokenTransformer(self.text_config)
        self.image_projection = self._projection()
        self.text_projection = self._projection()
        start = nn.initializers.constant(-math.log(self.config.temperature))
        self.log_scale = parameter(self, "log_scale", start, (), ())

    def _projection(self) -> Dense:
        names = ("embed", None)
        return Dense(self.width, names, bias=False, initializer=nn.initializers.lecun_normal())

    def image(self, images: jax.Array, noise: Noise | None = None) -> jax.Array:
        """images [B, H, W, C] -> float32 [B, embed_dim]."""
        pooled = self.image_tower(images, noise=noise.at("image") if noise is not None else None).pooled
        return self.image_projection(pooled).astype(jnp.float32)

    def text(self, tokens: jax.Array, segment_ids: jax.Array | None = None, noise: Noise | None = None) -> jax.Array:
        """tokens int [B, T], segment_ids int [B, T] (0 = padding) -> float32 [B, embed_dim]."""
        mask = Causal() if self.text_config.attention == "causal" else Full()
        noise = noise.at("text") if noise is not None else None
        pooled = self.text_tower(tokens, mask=mask, segment_ids=segment_ids, noise=noise).pooled
        return self.text_projection(pooled).astype(jnp.float32)

    def scale(self) -> jax.Array:
        """What cosine similarities are multiplied by: 1 / temperature, learned as its logarithm."""
        return jnp.exp(self.log_scale)

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        noise: Noise | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(image vectors, text vectors, scale)."""
        return self.image(images, noise), self.text(tokens, segment_ids, noise), self.scale()

    def flops(self, image_shape: tuple[int, ...] | None = None) -> float:
        """Forward FLOPs of one pair (the image of this shape, else of the data's), without the similarities."""
        image = ViT(self.image_config, self.image_shape, parent=None)
        text = TokenTransformer(self.text_config, parent=None)
        projections = 2.0 * (image.width + text.width) * self.width
        return (
            image.flops(image_shape=image_shape)
            + text.flops(causal=self.text_config.attention == "causal")
            + projections
        )
