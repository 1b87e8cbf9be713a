"""A convolution along the sequence that sees what attention may see."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.layers.dense import Dense, Initializer, parameter
from ssljax.layers.masks import Full, Mask, materialize
from ssljax.layers.noise import Noise, dropout


@dataclasses.dataclass(frozen=True)
class ConvolutionConfig:
    """A convolution over what the first block reads, added to what it makes (DeBERTa v2)."""

    size: int = setting(3, ge=1)  # tokens under the kernel, an odd number
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "gelu"  # of the result

    def validate(self) -> None:
        if self.size % 2 == 0:
            raise ValueError(f"size: got {self.size}, must be odd")


class Addend(NamedTuple):
    """What is added to the output of the first block, and scale and bias of the norm of the sum."""

    value: jax.Array  # [B, T, D]
    scale: jax.Array  # [D]
    bias: jax.Array | None  # [D]


class Convolution(nn.Module):
    """x [B, T, D] -> what to add. A token sees a neighbour only where the mask allows the pair: no padding, no other
    segment of a packed row, and nothing that comes later if the mask is causal."""

    config: ConvolutionConfig
    act: Callable[[jax.Array], jax.Array]
    bias: bool
    initializer: Initializer
    dropout: float = 0.0
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, mask: Mask, noise: Noise | None) -> Addend:
        size, (_, length, width) = self.config.size, x_BxTxD.shape
        half = size // 2
        padded = jnp.pad(x_BxTxD, ((0, 0), (half, half), (0, 0)))
        allowed = None if isinstance(mask, Full) else materialize(mask, length, length)[:, 0]
        here = jnp.arange(length)
        taps = []
        for i in range(size):
            tap = padded[:, i : i + length]
            if allowed is not None:
                seen = allowed[:, here, jnp.clip(here + i - half, 0, length - 1)]
                tap = jnp.where(seen[..., None], tap, 0)
            taps.append(tap)
        conv = Dense(width, ("mlp", "embed"), True, self.initializer, self.dtype, name="conv")
        y = conv(jnp.concatenate(taps, axis=-1))
        if noise is not None:
            y = dropout(y, self.dropout, noise.at("convolution"))
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), (width,), role="norm")
        bias = parameter(self, "bias", nn.initializers.zeros, ("embed",), (width,), role="norm") if self.bias else None
        return Addend(self.act(y), scale, bias)
