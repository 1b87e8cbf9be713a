"""Words and the words around them: random subsampling, windows, and noise (Mikolov et al. 2013, "word2vec")."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax.views.keys import uniforms


def keep_probability(frequency: jax.Array, threshold: float) -> jax.Array:
    """Returns min(1, sqrt(threshold / frequency)), the probability with which a token stays in the text (eq. 5).

    Args:
        frequency: share of each token id in the text, [V].
        threshold: t of the paper; the code of the authors has another formula.
    """
    return jnp.minimum(1.0, jnp.sqrt(threshold / jnp.maximum(frequency, 1e-30)))


class Words(NamedTuple):
    """The words of each row that are left after subsampling, moved together to its front.

    Attributes:
        tokens: int [B, T].
        segment_ids: int32 [B, T], 0 where there are no more words.
        reach: int32 [B, T], number of words on each side that are contexts of a word.
    """

    tokens: jax.Array
    segment_ids: jax.Array
    reach: jax.Array


def subsampled_words(keys: jax.Array, tokens: jax.Array, segment_ids: jax.Array, keep: jax.Array, window: int) -> Words:
    """Drops words at random, before contexts are formed, and draws the reach of the context of each word left.

    Args:
        keys: random keys [B].
        tokens: int [B, T].
        segment_ids: int [B, T]; 0 = no word (padding, special tokens).
        keep: [V], probability that a token stays.
        window: the reach is uniform in 1..window.
    """
    length = tokens.shape[1]
    u = uniforms(keys, 2 * length)
    kept = (segment_ids > 0) & (u[:, :length] < keep[tokens])
    order = jnp.argsort(~kept, axis=1, stable=True)
    moved = lambda x: jnp.take_along_axis(x, order, axis=1)  # noqa: E731
    reach = 1 + jnp.floor(u[:, length:] * window).astype(jnp.int32)
    return Words(moved(tokens), moved(jnp.where(kept, segment_ids, 0)).astype(jnp.int32), reach)


def context_at(words: Words, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the word at a distance from each word, int [B, T], and whether it is a context, bool [B, T].

    It is one if it is within the reach and in the segment of the word.

    Args:
        words: the words of the rows.
        offset: int, the distance; negative on the left.
    """
    length = words.tokens.shape[1]
    place = jnp.arange(length) + offset
    at = jnp.clip(place, 0, length - 1)
    same = (words.segment_ids[:, at] == words.segment_ids) & (words.segment_ids > 0)
    inside = (place >= 0) & (place < length) & (jnp.abs(offset) <= words.reach)
    return words.tokens[:, at], same & inside


def noise_tokens(keys: jax.Array, counts: jax.Array, power: float, shape: tuple[int, ...]) -> jax.Array:
    """Draws tokens with probabilities in proportion to counts ** power, int32 [B, *shape].

    Args:
        keys: random keys [B].
        counts: [V], not negative; a token of count 0 is never drawn.
        power: 0.75 in the paper, section 2.2.
        shape: number of tokens of each example.
    """
    sums = jnp.cumsum(jnp.where(counts > 0, counts.astype(jnp.float32) ** power, 0.0))
    u = uniforms(keys, math.prod(shape)) * sums[-1]
    found = jnp.searchsorted(sums, u, side="right").astype(jnp.int32)
    return jnp.minimum(found, len(sums) - 1).reshape(-1, *shape)


def offsets(window: int) -> jax.Array:
    """Returns the distances -window..-1, 1..window, int32 [2 window]."""
    far = jnp.arange(1, window + 1, dtype=jnp.int32)
    return jnp.concatenate([-far[::-1], far])
