"""LLaVA (Liu et al. 2023, "Visual Instruction Tuning"): a decoder that reads images among its tokens."""

import dataclasses
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import models
from ssljax.base.schema import setting
from ssljax.layers.config import ACTIVATIONS, Activation
from ssljax.layers.dense import Dense
from ssljax.layers.masks import Causal, Mask
from ssljax.layers.noise import Noise
from ssljax.models.family import Encoded
from ssljax.models.flops import dense_flops
from ssljax.models.tokens import Readout, TokenTransformer
from ssljax.models.vit import ViT, ViTConfig

_CLIP_L14 = ViTConfig(
    size="large",
    patch_size=14,
    activation="quick_gelu",
    norm_eps=1e-5,
    embedding_norm=True,
    patch_bias=False,
    image_shape=(336, 336, 3),
)


@dataclasses.dataclass(frozen=True)
class LLaVAConfig:
    """CLIP's image tower, two linear maps, and a decoder.

    feature_layer: whose tokens are mapped; -1 is what the last block makes, -2 what it reads.
    image_token: the id whose embeddings give way to the patches, one each.
    """

    inputs: ClassVar[str] = "image_text"

    image: ViTConfig = setting(_CLIP_L14)
    text: Any = setting(
        {"name": "llama", "size": "2-7b"},
        registry=models.REGISTRY.only("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"),
    )
    feature_layer: int = -2
    image_token: int = setting(32_000, ge=0)
    activation: Activation = "gelu"

    def resolved(self) -> Self:
        """The same with the numbers of both sizes filled in."""
        return dataclasses.replace(self, image=self.image.resolved(), text=self.text.resolved())

    def module(self, spec: Any, path: str = "model") -> "LLaVA":
        """The model for the images and tokens of `spec`."""
        image, text = self.image.module(spec, f"{path}.image").config, self.text.sized(spec, f"{path}.text")
        return dataclasses.replace(self, image=image, text=text).standalone()

    def standalone(self) -> "LLaVA":
        """The model by itself; the image's shape, the vocabulary and `max_len` must be known."""
        return LLaVA(self.resolved())


class LLaVA(nn.Module):
    """Tokens [B, T] and images [I, H, W, C] to hidden states; the images stand where image tokens are, in order."""

    config: LLaVAConfig  # resolved

    def setup(self) -> None:
        c = self.config
        self.vision = c.image.standalone()
        self.language = c.text.standalone()
        width, init = self.language.width, nn.initializers.normal(0.02)
        self.project_in = Dense(width, ("embed", "mlp"), initializer=init, dtype=c.text.dtype)
        self.project_out = Dense(width, ("mlp", "embed"), initializer=init, dtype=c.text.dtype)

    def patches(self, images: jax.Array, noise: Noise | None = None) -> jax.Array:
        """[I, H, W, C] -> what the decoder reads of them, [I, N, D]."""
        states: Any = self.vision(images, noise=noise, states=True).states
        x = states[self.config.feature_layer][:, self.config.image.prefix :]
        return self.project_out(ACTIVATIONS[self.config.activation](self.project_in(x)))

    def __call__(
        self,
        tokens: jax.Array,
        images: jax.Array | None,
        *,
        mask: Mask | None = None,
        noise: Noise | None = None,
        states: bool = False,
    ) -> Encoded:
        """tokens int [B, T] with as many image tokens as the images have patches -> states [B, T, D]."""
        vectors = self.language.embed(tokens)
        if images is not None:
            patches = self.patches(images).reshape(-1, vectors.shape[-1])
            here = tokens == self.config.image_token
            order = jnp.cumsum(here.reshape(-1)).reshape(here.shape) - 1
            vectors = jnp.where(here[..., None], patches[jnp.clip(order, 0, len(patches) - 1)], vectors)
        mask = Causal() if mask is None else Causal() & mask
        return self.language(tokens, mask=mask, noise=noise, states=states, vectors=vectors)

    def captions(self, images: jax.Array, tokens: jax.Array, noise: Noise | None = None) -> jax.Array:
        """Images [B, H, W, C] and tokens int [B, T] -> the states that predict each token, [B, T, D].

        Each has seen the image, and the tokens before.
        """
        patches = self.patches(images, noise.at("image") if noise is not None else None)
        vectors = jnp.concatenate([patches, self.language.embed(tokens[:, :-1]).astype(patches.dtype)], axis=1)
        row = jnp.zeros(vectors.shape[:2], tokens.dtype)  # whose embeddings give way
        encoded = self.language(row, mask=Causal(), noise=noise, vectors=vectors)
        return encoded.tokens[:, patches.shape[1] - 1 :]

    def patch_count(self, image_shape: tuple[int, ...]) -> int:
        """How many tokens stand for an image."""
        size = self.config.image.patch_size
        return (image_shape[0] // size) * (image_shape[1] // size)

    def flops(self, tokens: int, image_shape: tuple[int, ...]) -> float:
        """Forward FLOPs of an image and `tokens` tokens behind it, each of these read out."""
        patches, vision, language = self.patch_count(image_shape), self.config.image, self.config.text
        width = language.known("width")
        maps = dense_flops(patches, vision.known("width"), width) + dense_flops(patches, width, width)
        image = ViT(vision, parent=None).flops(image_shape=image_shape)
        decoder = TokenTransformer(language, parent=None)
        return image + maps + decoder.flops(tokens=patches + tokens, causal=True, predicted=tokens)

    def readout(self, hidden: jax.Array) -> Readout:
        """See `TokenTransformer.readout`."""
        return self.language.readout(hidden)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of hidden states [..., D]."""
        return self.language.logits(hidden)

    def init_all(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """For `init(..., method="init_all")`: every parameter is made."""
        return self.logits(self.captions(images, tokens))

    def initial(self, key: jax.Array) -> Any:
        """Variables from a key, no data needed."""
        images = jnp.zeros((1, *(self.config.image.image_shape or ())))
        return self.init(key, images, jnp.zeros((1, 1), jnp.int32), method="init_all")
