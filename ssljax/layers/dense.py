"""Linear maps and norms, and `parameter`, which declares a float32 parameter with logical axis names and a role."""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers import width
from ssljax.layers.roles import EFFECTS, Declared, Role, height_of

Initializer = Callable[..., jax.Array]

EXACT = jax.lax.Precision.HIGHEST  # of matrix products that are documented as float32


def parameter(
    module: nn.Module,
    name: str,
    init: Initializer,
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    *,
    role: Role,
    width_ratio: float | None = None,
) -> jax.Array:
    """Creates (in `init`) or reads (in `apply`) a float32 parameter.

    Its height is found from its position in the module tree (`ssljax.layers.roles.height_of`).

    Args:
        module: the module that owns the parameter.
        name: name in the module.
        init: (key, shape) -> initial value.
        names: logical names of the axes.
        shape: shape of the parameter.
        role: role for optimisers (`ssljax.layers.roles`).
        width_ratio: width ratio of the inputs of a matrix (`ssljax.layers.width`); None: that of the model if the name
            of the axis grows with the width.

    Raises:
        ValueError: `role` is unknown.
    """

    ratio = width.input_ratio(module, names, role) if width_ratio is None else width_ratio
    if ratio != 1:
        init = width.to_fixed_size(init, names, role, ratio)

    @functools.wraps(init)
    def declared(*arguments: Any, **options: Any) -> Declared:
        value = init(*arguments, **options)
        return Declared(value, names, role=role, height=height_of(module, name), width_ratio=ratio)

    if role not in EFFECTS:
        raise ValueError(f"{name}: got role {role!r}, must be one of {', '.join(EFFECTS)} (ssljax.layers.roles)")
    return cast(jax.Array, module.param(name, declared, shape))


def constrain(x_BxTxD: jax.Array) -> jax.Array:
    """Constrains the sharding of activations [B, T, D]; the identity outside `ssljax.parallel.mesh_context`."""
    return nn.with_logical_constraint(x_BxTxD, ("batch", "length", "embed"))


def constrain_rows(x: jax.Array, last: str | None = None) -> jax.Array:
    """Constrains the sharding of the output of a head [B, ..., D]: rows like the batch, the last axis by `last`.

    Without the constraint, XLA may omit a sum over devices in the backward pass of two consecutive linear maps: the
    values are right and the gradients are wrong (openxla/xla issue 40034; meshes with data, fsdp and tensor axes).

    Args:
        x: [B, ..., D].
        last: logical name of the last axis; None: not split.
    """
    return nn.with_logical_constraint(x, ("batch", *(None,) * (x.ndim - 2), last))


class Dense(nn.Module):
    """Linear map x [..., I] @ kernel [I, features] + bias; `names` and `role` are the kernel's axis names and role.

    `precision` of the product; None: the default of the backend, which rounds float32 to bfloat16 on TPUs and to TF32
    on recent GPUs.
    """

    features: int
    names: tuple[str | None, str | None]
    bias: bool = True
    initializer: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = "float32"
    role: Role = "matrix"
    precision: jax.lax.Precision | None = None
    width_ratio: float | None = None  # see `parameter`

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        ratio = self.width_ratio
        kernel = parameter(self, "kernel", self.initializer, self.names, shape, role=self.role, width_ratio=ratio)
        y = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype), precision=self.precision)
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, self.names[1:], shape[1:], role="bias")
            y = y + bias.astype(self.dtype)
        return y


class Norm(nn.Module):
    """LayerNorm (Ba 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis, in float32; returns the type of x.

    "rms_plus_one" stores the scale minus 1, so that weight decay pulls the scale to 1 (Gemma).
    """

    kind: str = "layer"
    eps: float = 1e-6
    bias: bool = True
    axis: str | None = "embed"  # logical name of the last axis

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, names = x.shape[-1:], (self.axis,)
        if self.kind == "rms_plus_one":
            scale = 1 + parameter(self, "scale", nn.initializers.zeros, names, shape, role="norm")
        else:
            scale = parameter(self, "scale", nn.initializers.ones, names, shape, role="norm")
        biased = self.kind == "layer" and self.bias
        bias = parameter(self, "bias", nn.initializers.zeros, names, shape, role="norm") if biased else None
        return normalized(x, scale, bias, self.kind, self.eps)


def normalized(x: jax.Array, scale: jax.Array, bias: jax.Array | None, kind: str, eps: float) -> jax.Array:
    """Normalises x [..., D] over the last axis, then multiplies by `scale` [D] and adds `bias` [D]; see `Norm`."""
    y = x.astype(jnp.float32)
    if kind == "layer":
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * (jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps) * scale)
    return (y if bias is None else y + bias).astype(x.dtype)
