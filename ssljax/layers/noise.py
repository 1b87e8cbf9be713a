"""Dropout and stochastic depth with one random mask per example.

The mask of an example depends only on the key and on the index of the example in the global batch. It does not change
when a batch is cut into slices, reordered or split over devices, so micro-batching is exact.
"""

from typing import NamedTuple

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
    16 random bits per element take half the time of 32; the factor uses the rounded rate.
    """
    if noise is None or (isinstance(rate, int | float) and rate == 0):
        return x
    width = x.shape[-1]
    shape = (*x.shape[1:-1], (width + 1) // 2)
    words = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(noise.keys())
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)  # [B, ..., ceil(D / 2), 2]
    bits = halves.reshape(*words.shape[:-1], -1)[..., :width]
    threshold = jnp.round(jnp.float32(rate) * 65536)
    scale = 65536 / (65536 - threshold)
    return jnp.where(bits >= threshold.astype(jnp.uint32), x * scale.astype(x.dtype), jnp.zeros((), x.dtype))


def drop_path(x: jax.Array, rate: float | jax.Array, noise: Noise | None) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): sets x [B, ...] of whole examples to 0 with probability `rate`.

    The other examples are multiplied by 1 / (1 - rate). The identity without noise or at rate 0.
    """
    if noise is None or (isinstance(rate, int | float) and rate == 0):
        return x
    keep = 1 - jnp.float32(rate)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep))(noise.keys())
    scale = jnp.where(kept, 1 / keep, 0).astype(x.dtype)
    return x * scale.reshape(-1, *[1] * (x.ndim - 1))
