"""Randomness of views: one key per example, so that row i depends on keys[i] and not on the size of the batch."""

import jax
import jax.numpy as jnp


def example_keys(key: jax.Array, rows: int | jax.Array) -> jax.Array:
    """Returns the keys [B] of examples, `fold_in(key, row)`.

    Args:
        key: one key.
        rows: the rows of the examples in the batch, int [B]; or B, for rows 0 to B - 1.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows) if isinstance(rows, int) else rows)


def fold_in(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    """Returns the keys [B] of one of several purposes, `jax.random.fold_in(keys[i], number)`."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def text_keys(tokens: jax.Array, keys: jax.Array, number: int) -> jax.Array:
    """Returns keys [B] that depend on the tokens of a row and on one of `number` chances alone.

    So a text has `number` different keys, whatever the step and its place in the batch. Two texts have the same keys
    with probability 2^-32.

    Args:
        tokens: int [B, T].
        keys: random keys [B], which draw one of the chances, all equally likely.
        number: number of keys of a text.
    """
    odd, factors = 0x9E3779B1, [1]
    for _ in range(tokens.shape[1] - 1):
        factors.append(factors[-1] * odd % 2**32)
    hashes = jnp.sum((tokens.astype(jnp.uint32) + 1) * jnp.array(factors, jnp.uint32), axis=1)
    own = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0, impl="threefry2x32"), hashes)
    chance = jax.vmap(lambda key: jax.random.randint(key, (), 0, number))(keys)
    return jax.vmap(jax.random.fold_in)(own, chance)


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
