"""Randomness of views: one key per example, so that row i depends on (key, i) and never on the size of the batch."""

import jax
import jax.numpy as jnp


def example_keys(key: jax.Array, batch: int) -> jax.Array:
    """Keys [B]: `fold_in(key, i)` for row i."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def uniforms(keys: jax.Array, n: int) -> jax.Array:
    """[B, n] float32 in [0, 1), row i from keys[i]; numbers that were drawn already (float [B, n]) come back as such.

    So an operation takes a key per example, or the uniform numbers that it would draw from it: a pipeline draws once
    for all its operations (each draw is a piece of program that takes long to compile).
    """
    if jnp.issubdtype(keys.dtype, jnp.floating):
        if keys.shape[-1] != n:
            raise ValueError(f"got {keys.shape[-1]} uniform numbers an example, must be {n}")
        return keys
    return jax.vmap(lambda key: jax.random.uniform(key, (n,)))(keys)


def between(u: jax.Array, low: float | jax.Array, high: float | jax.Array) -> jax.Array:
    """A uniform number in [0, 1) moved to [low, high)."""
    return low + u * (high - low)
