"""Dropout and stochastic depth with one random mask per example.

The mask of an example depends only on the key and on the index of the example in the global batch. It does not change
when a batch is cut into slices, reordered or split over devices, so micro-batching is exact.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from ssljax.base.hashing import name_id


class Noise(NamedTuple):
    """The randomness of a batch: one key, the index of each example in the global batch, and the use.

    A use is a path of names and indices (`at`), kept as a hash of 64 bits. Its random words are those of the cipher
    Threefry (Salmon et al. 2011) under the key combined with the use; the counter is the pair of an example's index and
    a pair of words. Compared with `jax.random.fold_in` for each name and example, a use needs one call of the cipher
    instead of four: less to compile, and twice as many words from a call.
    """

    key: jax.Array  # threefry
    row: jax.Array  # int32 [B], index in the global batch
    use: jax.Array | np.ndarray = np.zeros(2, np.uint32)

    def at(self, place: int | str | jax.Array) -> "Noise":
        """Returns independent noise for one use, given by a name or by the index of a layer (may be traced)."""
        number = jnp.asarray(name_id(place) if isinstance(place, str) else place).astype(jnp.uint32)
        return self._replace(use=_mixed(jnp.asarray(self.use) + (number + 1) * _ODD))

    def words(self, *shape: int) -> jax.Array:
        """Random words uint32 [B, *shape] of each example.

        They are computed elementwise, so a device computes those of its part of an array, however that is sharded.
        """
        *outer, width = shape
        half = (width + 1) // 2  # the cipher gives two words for a pair of counters
        counters, size = self.row.astype(jnp.uint32).reshape(-1, *[1] * len(shape)), (len(self.row), *outer, half)
        index, stride = jnp.zeros((), jnp.uint32), 1
        for axis in range(len(size) - 1, 0, -1):
            index, stride = index + jax.lax.broadcasted_iota(jnp.uint32, size, axis) * stride, stride * size[axis]
        key = jax.random.key_data(self.key) ^ self.use
        first, second = key.reshape(2, *[1] * len(size))
        pair = threefry2x32_p.bind(first, second, jnp.broadcast_to(counters, size), index)
        return jnp.stack(pair, axis=-1).reshape(*size[:-1], 2 * half)[..., :width]


_ODD = np.array([0x9E3779B1, 0x85EBCA77], np.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """Permutes the words of uint32 x so that every bit depends on all (Mueller's and Wellons' 32-bit hash)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


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
    words = noise.words(*shape)
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
    drawn_B = (noise.words(1) >> 8).astype(jnp.float32) * 2.0**-24  # uniform in [0, 1)
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
