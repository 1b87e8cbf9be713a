"""A convolution along the sequence that respects the attention mask (DeBERTa v2)."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.layers.dense import Dense, Initializer, normalized, parameter
from ssljax.layers.masks import Full, Mask, materialize
from ssljax.layers.noise import Noise, dropout


@dataclasses.dataclass(frozen=True)
class ConvolutionConfig:
    """A convolution of the input of the first block, added to the output of that block (DeBERTa v2)."""

    size: int = setting(3, ge=1, doc="width of the kernel in tokens, odd")
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = setting("gelu", doc="activation of the result")

    def validate(self) -> None:
        if self.size % 2 == 0:
            raise ValueError(f"size: got {self.size}, must be odd")


class Addend(NamedTuple):
    """The result of the convolution, with the parameters of the norm that follows the sum."""

    value: jax.Array  # [B, T, D], result of the convolution
    scale: jax.Array  # [D], scale of the norm
    bias: jax.Array | None  # [D], bias of the norm

    def added_to(self, x_BxTxD: jax.Array, kind: str, eps: float) -> jax.Array:
        """Returns norm(x + value) [B, T, D]; kind and eps as in `layers.dense.Norm`."""
        return normalized(x_BxTxD + self.value, self.scale, self.bias, kind, eps)


class Convolution(nn.Module):
    """Convolves x [B, T, D] along the sequence and returns an `Addend`.

    A neighbour that the mask forbids (padding, another segment of a packed row, a later token under a causal mask)
    enters as zeros.
    """

    config: ConvolutionConfig
    act: Callable[[jax.Array], jax.Array]
    bias: bool  # True: the norm after the sum has a bias
    initializer: Initializer
    dropout: float = 0.0
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, mask: Mask, noise: Noise | None) -> Addend:
        size, (_, length, width) = self.config.size, x_BxTxD.shape
        half = size // 2
        padded = jnp.pad(x_BxTxD, ((0, 0), (half, half), (0, 0)))
        allowed = None if isinstance(mask, Full) else materialize(mask, length, length)[:, 0]
        token = jnp.arange(length)
        taps = []
        for i in range(size):
            tap_BxTxD = padded[:, i : i + length]
            if allowed is not None:
                visible_BxT = allowed[:, token, jnp.clip(token + i - half, 0, length - 1)]
                tap_BxTxD = jnp.where(visible_BxT[..., None], tap_BxTxD, 0)
            taps.append(tap_BxTxD)
        conv = Dense(width, ("mlp", "embed"), True, self.initializer, self.dtype, name="conv")
        y = conv(jnp.concatenate(taps, axis=-1))
        if noise is not None:
            y = dropout(y, self.dropout, noise.at("convolution"))
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), (width,), role="norm")
        bias = parameter(self, "bias", nn.initializers.zeros, ("embed",), (width,), role="norm") if self.bias else None
        return Addend(self.act(y), scale, bias)
