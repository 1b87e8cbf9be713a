"""Dropout and stochastic depth with one random mask per example.

The mask of an example depends only on the key and on the index of the example in the global batch. It does not change
when a batch is cut into slices, reordered or split over devices, so micro-batching is exact.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssljax.base.hashing import name_id


class Noise(NamedTuple):
    """The randomness of a batch: one key, and the index of each example in the global batch."""

    key: jax.Array
    row: jax.Array  # int32 [B], index in the global batch

    def at(self, place: int | str | jax.Array) -> "Noise":
        """Returns independent noise for one use, given by a name or by the index of a layer (may be traced)."""
        return self._replace(key=jax.random.fold_in(self.key, name_id(place) if isinstance(place, str) else place))

    def keys(self) -> jax.Array:
        """Random keys [B], one per example."""
        return jax.vmap(jax.random.fold_in, (None, 0))(self.key, self.row)


def dropout(x: jax.Array, rate: float | jax.Array, noise: Noise | None) -> jax.Array:
    """Sets elements of x [B, ..., D] to 0 with probability `rate`; multiplies the others by 1 / (1 - rate).

    Srivastava et al. 2014. The identity without noise or at rate 0. The rate is rounded to a multiple of 2^-16, since
    16 random bits per element take half the time of 32; the factor uses the rounded rate. The product is computed in
    float32 and, for other types of x, rounded at random, so the mean over masks is x; see `_rounded`.
    """
    if noise is None or (isinstance(rate, int | float) and rate == 0):
        return x
    width = x.shape[-1]
    shape = (*x.shape[1:-1], (width + 1) // 2)
    words = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(noise.keys())
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)  # [B, ..., ceil(D / 2), 2]
    bits = halves.reshape(*words.shape[:-1], -1)[..., :width]
    threshold = jnp.round(jnp.float32(rate) * 65536)
    keep = bits >= threshold.astype(jnp.uint32)
    share = (bits.astype(jnp.float32) - threshold) / (65536 - threshold)  # uniform in [0, 1) for kept elements
    scaled = _rounded(x.astype(jnp.float32) * (65536 / (65536 - threshold)), share, x.dtype)
    return jnp.where(keep, scaled, jnp.zeros((), x.dtype))


def drop_path(x: jax.Array, rate: float | jax.Array, noise: Noise | None) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): sets x [B, ...] of whole examples to 0 with probability `rate`.

    The other examples are multiplied by 1 / (1 - rate), as in `dropout`. The identity without noise or at rate 0.
    """
    if noise is None or (isinstance(rate, int | float) and rate == 0):
        return x
    keep = 1 - jnp.float32(rate)
    drawn_B = jax.vmap(lambda key: jax.random.uniform(key))(noise.keys())
    drawn = drawn_B.reshape(-1, *[1] * (x.ndim - 1))
    scaled = _rounded(x.astype(jnp.float32) * (1 / keep), drawn / keep, x.dtype)  # kept examples have drawn / keep < 1
    return jnp.where(drawn < keep, scaled, jnp.zeros((), x.dtype))


def _rounded(y: jax.Array, share: jax.Array, dtype: Any) -> jax.Array:
    """Rounds y float32 to `dtype`, up or down at random, so that the mean over `share`, uniform in [0, 1), is y.

    Rounding to nearest would give every element of value 1 the same error: at rate 0.1, a bfloat16 activation of 1
    would have the mean 0.9984. Values that `dtype` has stay unchanged. The gradient is that of a conversion.
    """
    dropped = 23 - jnp.finfo(dtype).nmant  # bits of the mantissa of float32 that `dtype` lacks
    if dropped <= 0:
        return y.astype(dtype)
    up = jnp.clip(share * 2**dropped, 0, 2**dropped - 1).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(y), jnp.uint32) + up
    rounded = jax.lax.bitcast_convert_type((bits >> dropped) << dropped, jnp.float32)
    return (y + jax.lax.stop_gradient(rounded - y)).astype(dtype)
