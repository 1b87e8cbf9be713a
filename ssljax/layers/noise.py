"""Dropout and stochastic depth whose masks belong to an example, not to a batch.

The mask of example i is a function of (key, row i) alone. Cutting a batch into slices, reordering it or spreading it
over devices therefore leaves every mask as it was, so micro-batching is exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax.base.hashing import name_id


class Noise(NamedTuple):
    """A source of randomness for a batch: one key and the index of each example in the global batch."""

    key: jax.Array
    row: jax.Array  # int32 [B]

    def at(self, place: int | str | jax.Array) -> "Noise":
        """The independent source of a place: a layer (its index, which may be traced) or a name."""
        return self._replace(key=jax.random.fold_in(self.key, name_id(place) if isinstance(place, str) else place))

    def keys(self) -> jax.Array:
        """One key per example [B]."""
        return jax.vmap(jax.random.fold_in, (None, 0))(self.key, self.row)


def dropout(x: jax.Array, rate: float | jax.Array, noise: Noise | None) -> jax.Array:
    """Sets elements of x [B, ..., D] to zero with probability `rate` (Srivastava 2014); the rest grow by 1/(1 - rate).

    The identity without noise or at rate 0. The rate is rounded to a multiple of 2^-16, and the scale follows the
    rounded rate: 16 random bits per element halve the work of the generator.
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
    """Stochastic depth (Huang 2016): the whole branch x [B, ...] of an example is dropped with probability `rate`."""
    if noise is None or (isinstance(rate, int | float) and rate == 0):
        return x
    keep = 1 - jnp.float32(rate)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep))(noise.keys())
    scale = jnp.where(kept, 1 / keep, 0).astype(x.dtype)
    return x * scale.reshape(-1, *[1] * (x.ndim - 1))
