"""Convolutions over images, and their norm."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers.dense import parameter


class Conv(nn.Module):
    """Convolution [B, H, W, I] -> [B, ceil(H / stride), ceil(W / stride), features]: square kernel, odd side, no bias.

    The kernel is stored as a matrix [side * side * I, features], so that optimisers treat it as a matrix.
    """

    features: int
    side: int
    stride: int = 1
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.side, self.side, x.shape[-1], self.features)
        rows = self.side * self.side * x.shape[-1]
        init, names = nn.initializers.he_normal(), ("embed", "mlp")
        kernel = parameter(self, "kernel", init, names, (rows, self.features), role="matrix")
        margin = (self.side // 2, self.side // 2)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype).reshape(shape),
            (self.stride, self.stride),
            (margin, margin),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class GroupNorm(nn.Module):
    """Normalises each example of x [B, ..., C] over positions and groups of channels, in float32 (Wu & He 2018)."""

    groups: int
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        y = y - jnp.mean(y, axis=(1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=(1, 3), keepdims=True) + self.eps)
        scale = parameter(self, "scale", nn.initializers.ones, ("mlp",), x.shape[-1:], role="norm")
        bias = parameter(self, "bias", nn.initializers.zeros, ("mlp",), x.shape[-1:], role="norm")
        return (y.reshape(x.shape) * scale + bias).astype(x.dtype)
