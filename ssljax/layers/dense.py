"""Matrix products and norms: float32 parameters with logical axis names, computed in a given type."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]


def constrain(x_BxTxD: jax.Array) -> jax.Array:
    """Tells the partitioner how activations [B, T, D] lie on the mesh; nothing without a mesh and rules."""
    return nn.with_logical_constraint(x_BxTxD, ("batch", "length", "embed"))


class Dense(nn.Module):
    """x [..., I] @ kernel [I, features] + bias, with `names` the logical axes of the kernel."""

    features: int
    names: tuple[str | None, str | None]
    bias: bool = True
    init: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.with_logical_partitioning(self.init, self.names), shape)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.bias:
            bias = self.param(
                "bias", nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:]), (self.features,)
            )
            y = y + bias.astype(self.dtype)
        return y


class Norm(nn.Module):
    """LayerNorm (Ba 2016) or RMSNorm (Zhang & Sennrich 2019) of the last axis, in float32; returns the type of x."""

    kind: str = "layer"
    eps: float = 1e-6
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), shape)
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * (jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps) * scale)
        if self.kind == "layer" and self.bias:
            y = y + self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)), shape)
        return y.astype(x.dtype)
