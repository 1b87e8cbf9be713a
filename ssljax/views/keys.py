"""Randomness of views: one key per example, so that row i depends on (key, i) and never on the size of the batch."""

import jax
import jax.numpy as jnp


def example_keys(key: jax.Array, batch: int) -> jax.Array:
    """Keys [B]: `fold_in(key, i)` for row i."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def uniforms(keys: jax.Array, n: int) -> jax.Array:
    """[B, n] float32 in [0, 1), row i from keys[i]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (n,)))(keys)


def between(u: jax.Array, low: float | jax.Array, high: float | jax.Array) -> jax.Array:
    """A uniform number in [0, 1) moved to [low, high)."""
    return low + u * (high - low)
