"""Spans of tokens hidden behind sentinels (Raffel et al. 2020, T5, sections 3.1.4 and 3.3.4)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.views.keys import example_keys, uniforms


class Denoising(NamedTuple):
    """What an encoder reads and a decoder writes; rows are filled up with `valid` False."""

    tokens: jax.Array  # int32 [B, S]
    valid: jax.Array  # bool [B, S]
    target: jax.Array  # int32 [B, U]
    counted: jax.Array  # bool [B, U]


def span_counts(length: int | np.ndarray, rate: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """(hidden tokens, spans) of a text of so many tokens: numbers that do not depend on chance; (0, 0) below two."""
    length = np.asarray(length)
    hidden = np.clip(np.floor(length * rate + 0.5), 1, np.maximum(length - 1, 1)).astype(int)
    spans = np.clip(np.floor(hidden / mean_span + 0.5), 1, np.minimum(hidden, np.maximum(length - hidden, 1))).astype(
        int
    )
    return np.where(length < 2, 0, hidden), np.where(length < 2, 0, spans)


def denoising_lengths(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """(S, U): the longest inputs and targets that `span_corrupt` makes of texts of up to `length` tokens."""
    texts = np.arange(length + 1)
    hidden, spans = span_counts(texts, rate, mean_span)
    return int((texts - hidden + spans).max()), int((hidden + spans).max()) + 1


def span_corrupt(
    key: jax.Array, tokens: jax.Array, lengths: jax.Array, *, sentinel: int, rate: float = 0.15, mean_span: float = 3.0
) -> Denoising:
    """Hides spans: each becomes a sentinel in the input; the target names the sentinels, what they hide, and one more.

    The number of hidden tokens and of spans follows from the length; how the text is cut into kept and hidden parts,
    which alternate and begin with a kept one, is uniform among all ways.

    Args:
        tokens: int [B, T].
        lengths: int [B], how many of a row are text.
        sentinel: id of the first; the others count down.
        rate: share of the tokens that is hidden. mean_span: tokens of a span.
    """
    length = tokens.shape[1]
    hidden_of, spans_of = (jnp.asarray(table) for table in span_counts(np.arange(length + 1), rate, mean_span))
    most = max(int(span_counts(np.arange(length + 1), rate, mean_span)[1].max()), 1)
    sizes = denoising_lengths(length, rate, mean_span)
    u = uniforms(example_keys(key, len(tokens)), 2 * length).reshape(-1, 2, length)

    def one(row: jax.Array, n: jax.Array, u: jax.Array) -> Denoising:
        hidden, spans = hidden_of[n], spans_of[n]
        kept_sizes, hidden_sizes = _cut(u[0], n - hidden, spans, most), _cut(u[1], hidden, spans, most)
        ends = jnp.cumsum(kept_sizes + hidden_sizes)
        where, real = jnp.arange(length), jnp.arange(most) < spans
        inside = real[:, None] & (where >= (ends - hidden_sizes)[:, None]) & (where < ends[:, None])  # [spans, T]
        mask, span = inside.any(0), jnp.argmax(inside, 0)
        first = mask & (where == (ends - hidden_sizes)[span])
        kept = jnp.where(first, sentinel - span, row)
        read, valid = _pack(kept, (~mask | first) & (where < n), sizes[0])
        # Of the target: a sentinel before each span, then the last one.
        slot = jnp.where(mask, jnp.cumsum(mask) + span, sizes[1])
        target = jnp.zeros(sizes[1], jnp.int32).at[slot].set(row, mode="drop")
        starts = jnp.where(real, jnp.cumsum(hidden_sizes) - hidden_sizes + jnp.arange(most), sizes[1])
        target = target.at[starts].set(sentinel - jnp.arange(most), mode="drop")
        target = target.at[jnp.where(spans > 0, hidden + spans, sizes[1])].set(sentinel - spans, mode="drop")
        return Denoising(read, valid, target, jnp.arange(sizes[1]) < jnp.where(spans > 0, hidden + spans + 1, 0))

    return jax.vmap(one)(tokens.astype(jnp.int32), lengths, u)


def _cut(u: jax.Array, items: jax.Array, parts: jax.Array, most: int) -> jax.Array:
    """int [most]: sizes of `parts` parts, none empty, of a row of `items`; the others are 0."""
    place = jnp.arange(len(u))
    lot = jnp.where((place >= 1) & (place < items), u, 2.0)  # a part may begin at every item but the first
    begins = jnp.argsort(jnp.argsort(lot)) < parts - 1
    part = jnp.where(place < items, jnp.cumsum(begins), most)
    return jnp.where(parts > 0, jnp.zeros(most, jnp.int32).at[part].add(1, mode="drop"), 0)


def _pack(row: jax.Array, wanted: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The wanted elements, in their order, and which of the `size` places they fill."""
    order = jnp.argsort(~wanted, stable=True)[:size]
    valid = jnp.arange(size) < jnp.sum(wanted)
    return jnp.where(valid, row[order], 0).astype(jnp.int32), valid
