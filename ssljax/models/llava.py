"""LLaVA (Liu et al. 2023, "Visual Instruction Tuning"): a decoder whose input mixes image tokens and text tokens."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import models
from ssljax.base.schema import setting
from ssljax.layers.config import ACTIVATIONS, Activation
from ssljax.layers.dense import Dense
from ssljax.layers.masks import Causal, Mask
from ssljax.layers.noise import Noise
from ssljax.models.family import Encoded, Preset, PublishedCount, WithPreset, check_preset, validate_groups, with_preset
from ssljax.models.flops import dense_flops
from ssljax.models.llama import LlamaConfig
from ssljax.models.tokens import Readout, TokenTransformer
from ssljax.models.vit import ViT, ViTConfig

_CLIP_L14 = ViTConfig(
    preset="large",
    patch_size=14,
    activation="quick_gelu",
    norm_eps=1e-5,
    embedding_norm=True,
    patch_bias=False,
    image_shape=(336, 336, 3),
)


@dataclasses.dataclass(frozen=True)
class LLaVAConfig(WithPreset):
    """LLaVA 1.5 (Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning"): CLIP's image tower, a projector
    of two linear maps, and a decoder."""

    inputs: ClassVar[str] = "image_text"
    # LLaMA 2's vocabulary, an image token and a padding token, rounded up to a multiple of 64.
    presets: ClassVar[Mapping[str, Preset]] = {
        f"1.5-{size}": {"image": _CLIP_L14, "text": LlamaConfig(preset=f"2-{size}", vocab_size=32_064)}
        for size in ("7b", "13b")
    }
    published_count: ClassVar[PublishedCount] = PublishedCount()

    preset: str | None = setting(
        None, doc="name of two published towers (an unknown name lists them); None: the towers `image` and `text`"
    )
    image: ViTConfig = setting(_CLIP_L14, doc="the image tower")
    text: Any = setting(
        {"name": "llama", "preset": "2-7b"},
        registry=models.REGISTRY.only("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"),
        doc="the decoder",
    )
    feature_layer: int | tuple[int, ...] = setting(
        -2,
        doc="hidden state of the image tower that the projector reads; -1: output of the last block, -2: its input; a "
        "list: these states, concatenated",
    )
    feature_tokens: Literal["patches", "all"] = setting(
        "patches", doc="tokens of the image tower that the projector reads; 'all' includes the class token"
    )
    image_token: int = setting(
        32_000, ge=0, doc="id of the placeholder tokens; projected image tokens replace their embeddings"
    )
    activation: Activation = setting("gelu", doc="activation between the two maps of the projector")
    projector_bias: bool = setting(True, doc="add a bias to both maps of the projector")

    def validate(self) -> None:
        check_preset(self)
        full = self.with_preset()
        validate_groups(full, "image", "text")
        depth = full.image.known("depth")
        if not full.layers or any(abs(layer) > depth + (layer < 0) for layer in full.layers):
            raise ValueError(f"feature_layer: got {self.feature_layer}, must be in {-depth - 1}..{depth} (model.image)")

    @property
    def layers(self) -> tuple[int, ...]:
        """The hidden states that the projector reads."""
        return (self.feature_layer,) if isinstance(self.feature_layer, int) else self.feature_layer

    def with_preset(self) -> Self:
        """Returns a copy with the values of all presets filled in."""
        full = with_preset(self)
        return dataclasses.replace(full, image=full.image.with_preset(), text=full.text.with_preset())

    def module(self, spec: Any, path: str = "model") -> "LLaVA":
        """The model for the images and tokens of `spec`."""
        full = self.with_preset()
        image, text = full.image.module(spec, f"{path}.image").config, full.text.fit_to(spec, f"{path}.text")
        return LLaVA(dataclasses.replace(full, preset=None, image=image, text=text))

    def standalone(self) -> "LLaVA":
        """The model without data; `image_shape`, `vocab_size` and `max_len` must be set."""
        return LLaVA(dataclasses.replace(self.with_preset(), preset=None))


class LLaVA(nn.Module):
    """A decoder of tokens [B, T]; the patches of images [I, H, W, C] replace its placeholder tokens in order."""

    config: LLaVAConfig  # with preset values filled in

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.config.text.known("width")

    def setup(self) -> None:
        c = self.config
        self.vision = c.image.standalone()
        self.language = c.text.standalone()
        dense = functools.partial(Dense, self.width, bias=c.projector_bias, dtype=c.text.dtype)
        image, text = c.image.width_ratio, c.text.width_ratio
        self.project_in = dense(names=("embed", "mlp"), initializer=c.image.normal(), width_ratio=image)
        self.project_out = dense(names=("mlp", "embed"), initializer=c.text.normal(), width_ratio=text)

    def patches(self, images: jax.Array, noise: Noise | None = None) -> jax.Array:
        """Projected image tokens: [I, H, W, C] -> [I, N, D]."""
        c = self.config
        states: Any = self.vision(images, noise=noise, states=True).states
        first = c.image.prefix if c.feature_tokens == "patches" else 0
        x = jnp.concatenate([states[layer][:, first:] for layer in c.layers], axis=-1)
        return self.project_out(ACTIVATIONS[c.activation](self.project_in(x)))

    def __call__(
        self,
        tokens: jax.Array,
        images: jax.Array | None,
        *,
        mask: Mask | None = None,
        noise: Noise | None = None,
        states: bool = False,
    ) -> Encoded:
        """Decodes tokens int [B, T] -> hidden states [B, T, D].

        Args:
            tokens: int [B, T], with one placeholder (`image_token`) per projected image token.
            images: [I, H, W, C], in the order of their placeholders; None: no images.
            mask: restricts the causal mask further.
            noise: randomness of dropout and stochastic depth; None: neither.
            states: also return the hidden states between the blocks.
        """
        vectors = self.language.vectors(tokens)
        if images is not None:
            patches = self.patches(images).reshape(-1, vectors.shape[-1])
            is_image = tokens == self.config.image_token
            order = jnp.cumsum(is_image.reshape(-1)).reshape(is_image.shape) - 1
            vectors = jnp.where(is_image[..., None], patches[jnp.clip(order, 0, len(patches) - 1)], vectors)
        mask = Causal() if mask is None else Causal() & mask
        return self.language(tokens, mask=mask, noise=noise, states=states, vectors=vectors)

    def captions(
        self, images: jax.Array, tokens: jax.Array, noise: Noise | None = None, valid: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states [B, T, D] from which each token of a caption is predicted.

        State t depends on the image and on the tokens before t.

        Args:
            images: [B, H, W, C].
            tokens: int [B, T].
            noise: randomness of dropout and stochastic depth; None: neither.
            valid: bool [B, T], False = padding, which router losses leave out; None: no padding.
        """
        patches = self.patches(images, noise.at("image") if noise is not None else None)
        vectors = jnp.concatenate([patches, self.language.vectors(tokens[:, :-1]).astype(patches.dtype)], axis=1)
        row = jnp.zeros(vectors.shape[:2], tokens.dtype)  # placeholders: `vectors` replaces their embeddings
        if valid is not None:
            valid = jnp.concatenate([jnp.ones(patches.shape[:2], bool), valid[:, :-1]], axis=1)
        encoded = self.language(row, mask=Causal(), noise=noise, vectors=vectors, valid=valid)
        return encoded.tokens[:, patches.shape[1] - 1 :]

    def patch_count(self, image_shape: tuple[int, ...]) -> int:
        """The number of projected tokens per image."""
        size, all_tokens = self.config.image.patch_size, self.config.feature_tokens == "all"
        return (image_shape[0] // size) * (image_shape[1] // size) + all_tokens * self.config.image.prefix

    def flops(self, tokens: int, image_shape: tuple[int, ...]) -> float:
        """Forward FLOPs of an image and `tokens` text tokens, with logits for each text token."""
        patches, vision, language = self.patch_count(image_shape), self.config.image, self.config.text
        width = language.known("width")
        features = len(self.config.layers) * vision.known("width")
        maps = dense_flops(patches, features, width) + dense_flops(patches, width, width)
        image = ViT(vision, parent=None).flops(image_shape=image_shape)
        decoder = TokenTransformer(language, parent=None)
        return image + maps + decoder.flops(tokens=patches + tokens, causal=True, predicted=tokens)

    def readout(self, hidden: jax.Array) -> Readout:
        """Inputs of the projection to logits; see `TokenTransformer.readout`."""
        return self.language.readout(hidden)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of hidden states [..., D]."""
        return self.language.logits(hidden)

    def init_all(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """Calls all parts, so that `init(..., method="init_all")` creates every parameter."""
        return self.logits(self.captions(images, tokens))

    def initial(self, key: jax.Array) -> Any:
        """Initial variables; needs no data."""
        images = jnp.zeros((1, *(self.config.image.image_shape or ())))
        return self.init(key, images, jnp.zeros((1, 1), jnp.int32), method="init_all")
