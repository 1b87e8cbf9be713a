"""CLIP (Radford et al. 2021): an image tower and a text tower with a shared embedding space."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import fixed, setting
from ssljax.layers.config import Component
from ssljax.layers.dense import Dense, parameter
from ssljax.layers.masks import Causal, Full, Mask
from ssljax.layers.noise import Noise
from ssljax.models.family import (
    Encoded,
    Preset,
    PublishedCount,
    WithPreset,
    check_preset,
    dims,
    validate_groups,
    with_preset,
)
from ssljax.models.gpt import GPTConfig
from ssljax.models.tokens import TokenTransformer
from ssljax.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class TextConfig(GPTConfig):
    """The text tower of CLIP: GPT-2 pooled at the last token."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 2, 2),
        "nano": dims(128, 4, 2),
        "micro": dims(192, 6, 3),
        "base": dims(512, 12, 8),
        "large": dims(768, 12, 12),
    }

    preset: str | None = "nano"
    pool: Literal["first", "last", "mean"] = "last"
    bias_except: tuple[Component, ...] = fixed(())
    attention_scale: float | None = fixed(None)
    attention: Literal["causal", "full"] = setting(
        "causal",
        doc="attention mask; 'causal': tokens attend to themselves and to previous tokens, 'full': to all tokens",
    )


def _towers(patch: int, image: Preset, text: Preset, embed_dim: int | None, side: int = 224, **shared: Any) -> Preset:
    """A preset of two towers.

    Args:
        patch: side of a patch in pixels.
        image, text: keys of the image tower and of the text tower.
        embed_dim: width of the shared embedding space of CLIP; None: a preset of SigLIP.
        side: side of the images in pixels.
        **shared: keys of both towers.
    """
    image_keys: Preset = {"embedding_norm": True, "patch_bias": False} if embed_dim else {"pool": "map"}
    text_keys: Preset = {} if embed_dim else {"attention": "full"}
    shape = (side, side, 3)
    return {
        "image": ViTConfig(preset=None, patch_size=patch, image_shape=shape, **image, **image_keys, **shared),
        "text": TextConfig(preset=None, **text, **text_keys, **shared),
        "embed_dim": embed_dim,
    }


_TEXT = {"vocab_size": 49_408, "max_len": 77}
_QUICK: dict[str, Any] = {"activation": "quick_gelu", "norm_eps": 1e-5}


@dataclasses.dataclass(frozen=True)
class CLIPConfig(WithPreset):
    """CLIP (Radford et al. 2021): an image and a text encoder, each projected to `embed_dim` without bias."""

    inputs: ClassVar[str] = "pairs"
    presets: ClassVar[Mapping[str, Preset]] = {
        "b32": _towers(32, dims(768, 12, 12), dims(512, 12, 8, **_TEXT), 512, **_QUICK),
        "b16": _towers(16, dims(768, 12, 12), dims(512, 12, 8, **_TEXT), 512, **_QUICK),
        "l14": _towers(14, dims(1024, 24, 16), dims(768, 12, 12, **_TEXT), 768, **_QUICK),
        "l14-336": _towers(14, dims(1024, 24, 16), dims(768, 12, 12, **_TEXT), 768, 336, **_QUICK),
    }

    published_count: ClassVar[PublishedCount] = PublishedCount()

    preset: str | None = setting(
        None, doc="name of two published towers (an unknown name lists them); None: the towers `image` and `text`"
    )
    image: ViTConfig = setting(ViTConfig(preset="nano", embedding_norm=True, patch_bias=False), doc="the image tower")
    text: TextConfig = setting(TextConfig(), doc="the text tower")
    embed_dim: int | None = setting(
        128,
        ge=1,
        doc="width of the shared embedding space; None: the width of the image tower, without its projection",
    )
    temperature: float = setting(0.07, gt=0, doc="initial value of the learned temperature of the similarities")
    projection_bias: bool = fixed(False, doc="add a bias to the projections")
    logit_bias: float | None = fixed(None, doc="initial bias of the similarities, learned (SigLIP); None: no bias")

    def validate(self) -> None:
        check_preset(self)
        validate_groups(self.with_preset(), "image", "text")

    def with_preset(self) -> Self:
        """Returns a copy with the values of all presets filled in."""
        full = with_preset(self)
        return dataclasses.replace(full, image=full.image.with_preset(), text=full.text.with_preset())

    def module(self, spec: Any, path: str = "model") -> "CLIP":
        """The two towers for the images and tokens of `spec`."""
        full = self.with_preset()
        image, text = full.image.module(spec, f"{path}.image").config, full.text.fit_to(spec, f"{path}.text")
        return CLIP(dataclasses.replace(full, image=image, text=text))

    def standalone(self) -> "CLIP":
        """The two towers without data; `image_shape`, `vocab_size` and `max_len` of the towers must be set."""
        full = self.with_preset()
        return CLIP(dataclasses.replace(full, image=dataclasses.replace(full.image, tiled=False)))


@dataclasses.dataclass(frozen=True)
class SigLIPConfig(CLIPConfig):
    """SigLIP (Zhai et al. 2023): CLIP with attention pooling of images, full attention in texts, and a logit bias."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "b16": _towers(
            16,
            dims(768, 12, 12),
            dims(768, 12, 12, vocab_size=32_000, max_len=64),
            None,
            activation="gelu_tanh",
            norm_eps=1e-6,
        ),
        "l16-256": _towers(
            16,
            dims(1024, 24, 16),
            dims(1024, 24, 16, vocab_size=32_000, max_len=64),
            None,
            256,
            activation="gelu_tanh",
            norm_eps=1e-6,
        ),
    }

    image: ViTConfig = setting(ViTConfig(preset="nano", pool="map", activation="gelu_tanh"))
    text: TextConfig = setting(TextConfig(attention="full", norm_eps=1e-6))
    embed_dim: int | None = setting(None, ge=1)
    temperature: float = setting(0.1, gt=0)
    projection_bias: bool = fixed(True)
    logit_bias: float | None = fixed(-10.0)


class CLIP(nn.Module):
    """Two towers that map images and texts to vectors [B, embed_dim]; the loss normalises them."""

    config: CLIPConfig  # with preset values filled in

    @property
    def width(self) -> int:
        """Width of the shared embedding space."""
        return self.config.embed_dim or self.config.image.known("width")

    def setup(self) -> None:
        self.image_tower = ViT(self.config.image, "model.image")
        self.text_tower = TokenTransformer(self.config.text)
        if self.config.embed_dim is not None:
            self.image_projection = self._projection(self.config.image.width_ratio)
        self.text_projection = self._projection(self.config.text.width_ratio)
        start = nn.initializers.constant(-math.log(self.config.temperature))
        self.log_scale = parameter(self, "log_scale", start, (), (), role="scale")
        if self.config.logit_bias is not None:
            start = nn.initializers.constant(self.config.logit_bias)
            self.logit_bias = parameter(self, "logit_bias", start, (), (), role="bias")

    def _projection(self, ratio: float) -> Dense:
        names, init = ("embed", None), nn.initializers.lecun_normal()
        return Dense(self.width, names, self.config.projection_bias, init, width_ratio=ratio)

    def image(self, images: jax.Array, noise: Noise | None = None) -> jax.Array:
        """Embeds images [B, H, W, C] -> float32 [B, embed_dim]."""
        return self.project_image(
            self.image_tower(images, noise=noise.at("image") if noise is not None else None).pooled
        )

    def project_image(self, pooled: jax.Array) -> jax.Array:
        """Projects pooled images [B, width of the tower] -> float32 [B, embed_dim]."""
        pooled = pooled if self.config.embed_dim is None else self.image_projection(pooled)
        return pooled.astype(jnp.float32)

    def text(self, tokens: jax.Array, segment_ids: jax.Array | None = None, noise: Noise | None = None) -> jax.Array:
        """Embeds tokens int [B, T], segment_ids int [B, T] (0 = padding) -> float32 [B, embed_dim]."""
        noise = noise.at("text") if noise is not None else None
        return self.project_text(self.encode_text(tokens, segment_ids=segment_ids, noise=noise).pooled)

    def encode_text(self, tokens: jax.Array, mask: Mask | None = None, **keywords: Any) -> Encoded:
        """The text tower's outputs for tokens int [B, T]; `mask` restricts the configured attention mask further."""
        configured: Mask = Causal() if self.config.text.attention == "causal" else Full()
        return self.text_tower(tokens, mask=configured if mask is None else configured & mask, **keywords)

    def encode_image(self, images: jax.Array, **keywords: Any) -> Encoded:
        """The image tower's outputs for images [B, H, W, C]."""
        return self.image_tower(images, **keywords)

    def project_text(self, pooled: jax.Array) -> jax.Array:
        """Projects pooled texts [B, width of the tower] -> float32 [B, embed_dim]."""
        return self.text_projection(pooled).astype(jnp.float32)

    def scale(self) -> jax.Array:
        """The factor of cosine similarities: 1 / temperature, learned as its logarithm."""
        return jnp.exp(self.log_scale)

    def bias(self) -> jax.Array:
        """The bias of the similarities, learned; only with a `logit_bias` in the configuration."""
        return self.logit_bias

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        noise: Noise | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (image vectors [B, embed_dim], text vectors [B, embed_dim], scale)."""
        return self.image(images, noise), self.text(tokens, segment_ids, noise), self.scale()

    def initial(self, key: jax.Array) -> Any:
        """Initial variables; needs no data."""
        return self.init(key, jnp.zeros((1, *(self.config.image.image_shape or ()))), jnp.zeros((1, 1), jnp.int32))

    def flops(self, image_shape: tuple[int, ...] | None = None) -> float:
        """Forward FLOPs of one pair, without the similarities; `image_shape`: None for the configured one."""
        c = self.config
        image, text = ViT(c.image, parent=None), TokenTransformer(c.text, parent=None)
        projections = 2.0 * (image.width + text.width) * self.width
        return image.flops(image_shape=image_shape) + text.flops(causal=c.text.attention == "causal") + projections
