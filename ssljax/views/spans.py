"""Span corruption: spans of tokens replaced by sentinels (T5, Raffel et al. 2020, sections 3.1.4 and 3.3.4)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.views.keys import uniforms


class Denoising(NamedTuple):
    """Encoder inputs and decoder targets of span corruption.

    Attributes:
        tokens: int32 [B, S], inputs.
        valid: bool [B, S], False at padding of the inputs.
        target: int32 [B, U], targets.
        counted: bool [B, U], False at padding of the targets.
    """

    tokens: jax.Array
    valid: jax.Array
    target: jax.Array
    counted: jax.Array


def span_counts(length: int | np.ndarray, rate: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of (hidden tokens, spans) in a text of `length` tokens; (0, 0) for fewer than two tokens."""
    length = np.asarray(length)
    hidden = np.clip(np.floor(length * rate + 0.5), 1, np.maximum(length - 1, 1)).astype(int)
    spans = np.clip(np.floor(hidden / mean_span + 0.5), 1, np.minimum(hidden, np.maximum(length - hidden, 1))).astype(
        int
    )
    return np.where(length < 2, 0, hidden), np.where(length < 2, 0, spans)


def denoising_lengths(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Returns (S, U), the largest lengths of inputs and targets of `span_corrupt` for up to `length` tokens."""
    texts = np.arange(length + 1)
    hidden, spans = span_counts(texts, rate, mean_span)
    return int((texts - hidden + spans).max()), int((hidden + spans).max()) + 1


def span_corrupt(
    keys: jax.Array, tokens: jax.Array, lengths: jax.Array, *, sentinel: int, rate: float = 0.15, mean_span: float = 3.0
) -> Denoising:
    """Replaces random spans of a text by sentinels in the inputs; the targets list each sentinel and its span.

    The targets end with one more sentinel. The length of the text determines the numbers of hidden tokens and of spans
    (`span_counts`). Kept and hidden parts alternate, beginning with a kept part; all such partitions are equally
    likely.

    Args:
        keys: random keys [B].
        tokens: int [B, T].
        lengths: int [B], number of text tokens of each row; the rest is padding.
        sentinel: id of the first sentinel; the ids of the others count down from it.
        rate: share of the tokens that are hidden.
        mean_span: mean number of tokens in a span.
    """
    length = tokens.shape[1]
    hidden_of, spans_of = (jnp.asarray(table) for table in span_counts(np.arange(length + 1), rate, mean_span))
    max_spans = max(int(span_counts(np.arange(length + 1), rate, mean_span)[1].max()), 1)
    sizes = denoising_lengths(length, rate, mean_span)
    u = uniforms(keys, 2 * length).reshape(-1, 2, length)

    def corrupt(row: jax.Array, n: jax.Array, u: jax.Array) -> Denoising:
        hidden, spans = hidden_of[n], spans_of[n]
        kept_sizes, hidden_sizes = _cut(u[0], n - hidden, spans, max_spans), _cut(u[1], hidden, spans, max_spans)
        ends = jnp.cumsum(kept_sizes + hidden_sizes)
        position, real = jnp.arange(length), jnp.arange(max_spans) < spans
        inside = real[:, None] & (position >= (ends - hidden_sizes)[:, None]) & (position < ends[:, None])  # [spans, T]
        mask, span = inside.any(0), jnp.argmax(inside, 0)
        first = mask & (position == (ends - hidden_sizes)[span])
        kept = jnp.where(first, sentinel - span, row)
        read, valid = _pack(kept, (~mask | first) & (position < n), sizes[0])
        # In the target a sentinel comes before each span, and one more at the end.
        slot = jnp.where(mask, jnp.cumsum(mask) + span, sizes[1])
        target = jnp.zeros(sizes[1], jnp.int32).at[slot].set(row, mode="drop")
        starts = jnp.where(real, jnp.cumsum(hidden_sizes) - hidden_sizes + jnp.arange(max_spans), sizes[1])
        target = target.at[starts].set(sentinel - jnp.arange(max_spans), mode="drop")
        target = target.at[jnp.where(spans > 0, hidden + spans, sizes[1])].set(sentinel - spans, mode="drop")
        return Denoising(read, valid, target, jnp.arange(sizes[1]) < jnp.where(spans > 0, hidden + spans + 1, 0))

    return jax.vmap(corrupt)(tokens.astype(jnp.int32), lengths, u)


def prefix_lengths(keys: jax.Array, lengths: jax.Array, share: float | None = None) -> jax.Array:
    """Returns the number of tokens of each text that are read before the others are predicted, int32 [B].

    It is from 1 to n - 1 for a text of n tokens, and 0 for fewer than two tokens.

    Args:
        keys: random keys [B].
        lengths: int [B], number of tokens of each text.
        share: share of the tokens, rounded; None: all numbers are equally likely.
    """
    drawn = 1 + uniforms(keys, 1)[:, 0] * (lengths - 1) if share is None else lengths * share + 0.5
    return jnp.clip(jnp.floor(drawn).astype(jnp.int32), jnp.minimum(lengths - 1, 1), lengths - 1).clip(0)


def _cut(u: jax.Array, items: jax.Array, parts: jax.Array, max_parts: int) -> jax.Array:
    """Sizes, int [max_parts], of a random cut of `items` items into `parts` non-empty parts; unused entries are 0."""
    item = jnp.arange(len(u))
    lot = jnp.where((item >= 1) & (item < items), u, 2.0)  # a part may begin at every item except the first
    begins = jnp.argsort(jnp.argsort(lot)) < parts - 1
    part = jnp.where(item < items, jnp.cumsum(begins), max_parts)
    return jnp.where(parts > 0, jnp.zeros(max_parts, jnp.int32).at[part].add(1, mode="drop"), 0)


def _pack(row: jax.Array, kept: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Moves the kept elements to the front of a row of `size`; returns it and a mask of the filled entries."""
    order = jnp.argsort(~kept, stable=True)[:size]
    valid = jnp.arange(size) < jnp.sum(kept)
    return jnp.where(valid, row[order], 0).astype(jnp.int32), valid
