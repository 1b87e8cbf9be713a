"""Randomness of views: one key per example, so that row i depends on (key, i) and not on the size of the batch."""

import jax
import jax.numpy as jnp


def example_keys(key: jax.Array, batch: int) -> jax.Array:
    """Returns keys [B], `fold_in(key, i)` for row i."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def uniforms(keys: jax.Array, n: int) -> jax.Array:
    """Draws uniform numbers, float32 [B, n] in [0, 1), row i from keys[i]. Float inputs [B, n] are returned unchanged.

    So an operation accepts keys or uniform numbers. A pipeline draws numbers once for all its operations, because every
    draw adds to the compilation time.

    Raises:
        ValueError: a float input has another second axis than n.
    """
    if jnp.issubdtype(keys.dtype, jnp.floating):
        if keys.shape[-1] != n:
            raise ValueError(f"got {keys.shape[-1]} uniform numbers per example, must be {n}")
        return keys
    return jax.vmap(lambda key: jax.random.uniform(key, (n,)))(keys)


def between(u: jax.Array, low: float | jax.Array, high: float | jax.Array) -> jax.Array:
    """Maps uniform numbers from [0, 1) to [low, high)."""
    return low + u * (high - low)
