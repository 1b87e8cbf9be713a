"""Helpers of all losses: the weighted mean over examples, and L2 normalisation."""

from typing import Any

import jax
import jax.numpy as jnp

NEG_INF = -1e30
"""Masked scores have this finite value instead of minus infinity, so that no gradient is inf - inf."""

EXACT = jax.lax.Precision.HIGHEST
"""Precision of every matrix product of a loss. By default TPUs and recent GPUs round float32 factors to bfloat16 or
TF32, an error of up to 1% in a similarity."""


def weights_of(weights: jax.Array | None, n: int) -> jax.Array:
    """Returns `weights` as float32 [N]; None gives ones."""
    return jnp.ones(n, jnp.float32) if weights is None else jnp.asarray(weights).astype(jnp.float32)


def present(weights: jax.Array, *arrays: jax.Array, axis: int = 0) -> list[jax.Array]:
    """Returns arrays whose rows of weight 0, along an axis, are zeros: padding may hold NaN, also in gradients."""

    def cleared(x: jax.Array) -> jax.Array:
        shape = [1] * x.ndim
        shape[axis] = -1
        return jnp.where((weights > 0).reshape(shape), x, jnp.zeros((), x.dtype))

    return [cleared(x) for x in arrays]


def weighted_mean(values: jax.Array, weights: jax.Array, reduce: bool = True, axis_name: Any = None):
    """Returns the scalar sum(w v) / sum(w), or the pair (values [N], weights [N]) if `reduce` is False.

    Rows of weight 0 get the value 0, so that a NaN in them never reaches the sum. If all weights are 0, the mean is
    0 and not NaN: an empty slice of a batch adds nothing. With the `axis_name` of a `shard_map`, sums are those of all
    devices.
    """
    values = jnp.where(weights > 0, values, 0.0)
    if not reduce:
        return values, weights
    sums = (values * weights).sum(), weights.sum()
    summed, total = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    return summed / jnp.where(total > 0, total, 1.0)


def l2_normalize(z: jax.Array) -> jax.Array:
    """Scales the last axis of `z` to length 1, in float32. A zero vector stays zero, with a finite gradient."""
    z = z.astype(jnp.float32)
    # Divided by the largest entry first: squares of large or tiny entries would overflow or vanish in float32.
    largest = jax.lax.stop_gradient(jnp.abs(z).max(-1, keepdims=True))
    z = z / jnp.where(largest > 0, largest, 1.0)
    square = (z * z).sum(-1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
