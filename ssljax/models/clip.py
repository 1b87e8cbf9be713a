"""CLIP (Radford et al. 2021): two towers into one space."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.errors import nearest
from ssljax.base.schema import fixed, setting
from ssljax.layers.config import Part
from ssljax.layers.dense import Dense, parameter
from ssljax.layers.masks import Causal, Full, Mask
from ssljax.layers.noise import Noise
from ssljax.models.family import Encoded, Preset, Published, dims
from ssljax.models.gpt import GPTConfig
from ssljax.models.tokens import TokenTransformer
from ssljax.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class TextConfig(GPTConfig):
    """The text tower: GPT-2's block, pooled at the last token."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 2, 2),
        "nano": dims(128, 4, 2),
        "micro": dims(192, 6, 3),
        "base": dims(512, 12, 8),
        "large": dims(768, 12, 12),
    }

    preset: str | None = "nano"
    pool: Literal["first", "last", "mean"] = "last"
    bias_except: tuple[Part, ...] = fixed(())
    attention_scale: float | None = fixed(None)
    attention: Literal["causal", "full"] = "causal"  # a token sees those up to itself, or all; `pool` is chosen apart


def _published(
    patch: int, image: Preset, text: Preset, embed_dim: int | None, side: int = 224, **towers: Any
) -> Preset:
    """What CLIP was published with: the towers' sizes, and what both towers share."""
    own: Preset = {"embedding_norm": True, "patch_bias": False} if embed_dim else {"pool": "map"}
    picture = ViTConfig(preset=None, patch_size=patch, image_shape=(side, side, 3), **image, **own, **towers)
    causal: Preset = {} if embed_dim else {"attention": "full"}
    return {"image": picture, "text": TextConfig(preset=None, **text, **causal, **towers), "embed_dim": embed_dim}


_TEXT = {"vocab_size": 49_408, "max_len": 77}
_QUICK: dict[str, Any] = {"activation": "quick_gelu", "norm_eps": 1e-5}


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """A pair of encoders, each projected without bias to `embed_dim`.

    embed_dim: width of the space that both share; None: that of the image tower, whose vectors stay as they are.
    temperature: at the start; it is learned.
    """

    inputs: ClassVar[str] = "pairs"
    presets: ClassVar[Mapping[str, Preset]] = {
        "b32": _published(32, dims(768, 12, 12), dims(512, 12, 8, **_TEXT), 512, **_QUICK),
        "b16": _published(16, dims(768, 12, 12), dims(512, 12, 8, **_TEXT), 512, **_QUICK),
        "l14": _published(14, dims(1024, 24, 16), dims(768, 12, 12, **_TEXT), 768, **_QUICK),
        "l14-336": _published(14, dims(1024, 24, 16), dims(768, 12, 12, **_TEXT), 768, 336, **_QUICK),
    }

    published: ClassVar[Published] = Published()

    preset: str | None = None  # named towers; None: those of `image` and `text`
    image: ViTConfig = setting(ViTConfig(preset="nano", embedding_norm=True, patch_bias=False))
    text: TextConfig = setting(TextConfig())
    embed_dim: int | None = setting(128, ge=1)
    temperature: float = setting(0.07, gt=0)
    projection_bias: bool = fixed(False)
    logit_bias: float | None = fixed(None)  # at the start, where one is learned (SigLIP)

    def validate(self) -> None:
        if self.preset is not None and self.preset not in self.presets:
            close = nearest(self.preset, self.presets)
            raise ValueError(f"preset: unknown preset {self.preset!r}{close} (known: {', '.join(self.presets)})")

    def with_preset(self) -> Self:
        """The same with the numbers of all sizes filled in."""
        full = self if self.preset is None else dataclasses.replace(self, **self.presets[self.preset])
        return dataclasses.replace(full, image=full.image.with_preset(), text=full.text.with_preset())

    def module(self, spec: Any, path: str = "model") -> "CLIP":
        """The two towers for the images and tokens of `spec`."""
        full = self.with_preset()
        image, text = full.image.module(spec, f"{path}.image").config, full.text.fit_to(spec, f"{path}.text")
        return CLIP(dataclasses.replace(full, image=image, text=text))

    def standalone(self) -> "CLIP":
        """The two towers by themselves; the image's shape, the vocabulary and `max_len` must be known."""
        full = self.with_preset()
        return CLIP(dataclasses.replace(full, image=dataclasses.replace(full.image, tiled=False)))


@dataclasses.dataclass(frozen=True)
class SigLIPConfig(CLIPConfig):
    """SigLIP (Zhai et al. 2023): images pooled by attention, texts seen whole and read at the last token; scores have
    a learned bias."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "b16": _published(
            16,
            dims(768, 12, 12),
            dims(768, 12, 12, vocab_size=32_000, max_len=64),
            None,
            activation="gelu_tanh",
            norm_eps=1e-6,
        ),
        "l16-256": _published(
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
    """Images and texts to vectors [B, embed_dim], not normalised (the loss does that)."""

    config: CLIPConfig  # resolved

    @property
    def width(self) -> int:
        """Width of the shared space."""
        return self.config.embed_dim or self.config.image.known("width")

    def setup(self) -> None:
        self.image_tower = ViT(self.config.image, "model.image")
        self.text_tower = TokenTransformer(self.config.text)
        if self.config.embed_dim is not None:
            self.image_projection = self._projection()
        self.text_projection = self._projection()
        start = nn.initializers.constant(-math.log(self.config.temperature))
        self.log_scale = parameter(self, "log_scale", start, (), (), role="scale")
        if self.config.logit_bias is not None:
            start = nn.initializers.constant(self.config.logit_bias)
            self.logit_bias = parameter(self, "logit_bias", start, (), (), role="bias")

    def _projection(self) -> Dense:
        names = ("embed", None)
        return Dense(self.width, names, self.config.projection_bias, nn.initializers.lecun_normal())

    def image(self, images: jax.Array, noise: Noise | None = None) -> jax.Array:
        """images [B, H, W, C] -> float32 [B, embed_dim]."""
        return self.project_image(
            self.image_tower(images, noise=noise.at("image") if noise is not None else None).pooled
        )

    def project_image(self, pooled: jax.Array) -> jax.Array:
        """[B, width of the tower] -> float32 [B, embed_dim]."""
        pooled = pooled if self.config.embed_dim is None else self.image_projection(pooled)
        return pooled.astype(jnp.float32)

    def text(self, tokens: jax.Array, segment_ids: jax.Array | None = None, noise: Noise | None = None) -> jax.Array:
        """tokens int [B, T], segment_ids int [B, T] (0 = padding) -> float32 [B, embed_dim]."""
        noise = noise.at("text") if noise is not None else None
        return self.project_text(self.encode_text(tokens, segment_ids=segment_ids, noise=noise).pooled)

    def encode_text(self, tokens: jax.Array, mask: Mask | None = None, **keywords: Any) -> Encoded:
        """What the text tower makes of tokens int [B, T], which see each other as `attention` says (and `mask`)."""
        own: Mask = Causal() if self.config.text.attention == "causal" else Full()
        return self.text_tower(tokens, mask=own if mask is None else own & mask, **keywords)

    def encode_image(self, images: jax.Array, **keywords: Any) -> Encoded:
        """What the image tower makes of images [B, H, W, C]."""
        return self.image_tower(images, **keywords)

    def project_text(self, pooled: jax.Array) -> jax.Array:
        """[B, width of the tower] -> float32 [B, embed_dim]."""
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

    def initial(self, key: jax.Array) -> Any:
        """Variables from a key, no data needed."""
        return self.init(key, jnp.zeros((1, *(self.config.image.image_shape or ()))), jnp.zeros((1, 1), jnp.int32))

    def flops(self, image_shape: tuple[int, ...] | None = None) -> float:
        """Forward FLOPs of one pair (the image of this shape, else of the data's), without the similarities."""
        c = self.config
        image, text = ViT(c.image, parent=None), TokenTransformer(c.text, parent=None)
        projections = 2.0 * (image.width + text.width) * self.width
        return image.flops(image_shape=image_shape) + text.flops(causal=c.text.attention == "causal") + projections
