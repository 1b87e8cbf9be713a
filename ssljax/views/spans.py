"""Span corruption: spans of tokens replaced by sentinels (T5, Raffel et al. 2020, sections 3.1.4 and 3.3.4)."""

import functools
import math
from collections.abc import Sequence
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
    """Returns (S, U), the largest lengths of inputs and targets of `span_corrupt` for up to `length` tokens.

    A text of 568 tokens has (511, 114) at 15 % and spans of 3; the 512th token of T5's inputs is the end of the text.
    """
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
    one = jnp.zeros(len(lengths), jnp.int32)
    return mixed_span_corrupt(keys, tokens, lengths, one, [Denoiser(rate, mean_span)], sentinel=sentinel)


class Denoiser(NamedTuple):
    """One way to hide spans.

    Attributes:
        rate: share of the tokens that are hidden.
        mean_span: mean number of tokens in a span; infinity: one span.
        ends_hidden: True: the text ends with a hidden span; False: it ends with a hidden or a kept part.
    """

    rate: float
    mean_span: float = math.inf
    ends_hidden: bool = True


def mixed_span_corrupt(
    keys: jax.Array,
    tokens: jax.Array,
    lengths: jax.Array,
    choice: jax.Array,
    denoisers: Sequence[Denoiser],
    *,
    sentinel: int,
) -> Denoising:
    """Hides spans of each text in one of several ways; see `span_corrupt` (Tay et al. 2022, "UL2", section 3.1).

    The numbers of tokens of the rows of inputs and targets are the largest of `denoising_lengths` of the denoisers.

    Args:
        keys, tokens, lengths, sentinel: see `span_corrupt`.
        choice: int [B], number of the denoiser of each text.
        denoisers: the denoisers.
    """
    length = tokens.shape[1]
    counts = [span_counts(np.arange(length + 1), d.rate, d.mean_span) for d in denoisers]
    hidden_of, spans_of = (jnp.asarray(np.stack(tables))[choice] for tables in zip(*counts))  # [B, T + 1]
    max_spans = max(1, *(int(spans.max()) for _, spans in counts))
    sizes = tuple(map(max, zip(*(denoising_lengths(length, d.rate, d.mean_span) for d in denoisers))))
    further = jnp.asarray([not d.ends_hidden for d in denoisers], jnp.int32)[choice]
    u = uniforms(keys, 2 * length).reshape(-1, 2, length)

    def corrupt(
        row: jax.Array, n: jax.Array, u: jax.Array, hidden_of: jax.Array, spans_of: jax.Array, further: jax.Array
    ) -> Denoising:
        hidden, spans = hidden_of[n], spans_of[n]
        # A further kept part, at the end, may be empty: it is cut from one item more.
        further = jnp.where(spans > 0, further, 0)
        kept_sizes = _cut(u[0], n - hidden + further, spans + further, max_spans + 1)[:max_spans]
        kept_sizes = jnp.where(jnp.arange(max_spans) < spans, kept_sizes, 0)
        hidden_sizes = _cut(u[1], hidden, spans, max_spans)
        ends = jnp.cumsum(kept_sizes + hidden_sizes)
        position, real = jnp.arange(length), jnp.arange(max_spans) < spans
        inside = real[:, None] & (position >= (ends - hidden_sizes)[:, None]) & (position < ends[:, None])  # [spans, T]
        mask, span = inside.any(0), jnp.argmax(inside, 0)
        first = mask & (position == (ends - hidden_sizes)[span])
        kept = jnp.where(first, sentinel - span, row)
        read, valid = pack_tokens(kept, (~mask | first) & (position < n), sizes[0])
        # In the target a sentinel comes before each span, and one more at the end.
        slot = jnp.where(mask, jnp.cumsum(mask) + span, sizes[1])
        target = jnp.zeros(sizes[1], jnp.int32).at[slot].set(row, mode="drop")
        starts = jnp.where(real, jnp.cumsum(hidden_sizes) - hidden_sizes + jnp.arange(max_spans), sizes[1])
        target = target.at[starts].set(sentinel - jnp.arange(max_spans), mode="drop")
        target = target.at[jnp.where(spans > 0, hidden + spans, sizes[1])].set(sentinel - spans, mode="drop")
        return Denoising(read, valid, target, jnp.arange(sizes[1]) < jnp.where(spans > 0, hidden + spans + 1, 0))

    return jax.vmap(corrupt)(tokens.astype(jnp.int32), lengths, u, hidden_of, spans_of, further)


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


def prefix_sizes(length: int, share: float | None = None) -> tuple[int, int]:
    """Returns the largest numbers of tokens before and after the cut of `prefix_lengths`, of up to `length` tokens."""
    if share is None:
        return max(length - 1, 0), max(length - 1, 0)
    slack = 1e-6 * length  # the cut is rounded in float32
    least, most = (int(np.clip(np.floor(length * share + 0.5 + d), 1, length - 1)) for d in (-slack, slack))
    return most, length - least


def split_texts(tokens: jax.Array, lengths: jax.Array, prefix: jax.Array, sizes: tuple[int, int]) -> Denoising:
    """Cuts each text in two: its prefix are the inputs, and the rest the targets; without a prefix nothing is counted.

    Args:
        tokens: int [B, T].
        lengths: int [B], number of tokens of each text; the rest is padding.
        prefix: int [B], number of tokens of each prefix.
        sizes: numbers of tokens (S, U) of a row of inputs and of targets, at least those that the cuts need.
    """
    place = jnp.arange(tokens.shape[1])
    read = place < prefix[:, None]
    written = (place < lengths[:, None]) & ~read & (prefix > 0)[:, None]
    packed = [_packed(tokens, kept, size) for kept, size in zip((read, written), sizes)]
    return Denoising(*packed[0], *packed[1])


def joined_texts(
    tokens: jax.Array, valid: jax.Array, target: jax.Array, counted: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the texts that a decoder reads: the tokens of the inputs, then those of the targets but the last.

    Args:
        tokens, valid, target, counted: see `Denoising`.

    Returns:
        tokens int32 [B, S + U - 1] without padding between inputs and targets, bool [B, S + U - 1] False at the padding
        at the end, and the numbers of tokens of the inputs, int32 [B].
    """
    both, kept = (jnp.concatenate([x, y[:, :-1]], axis=1) for x, y in ((tokens, target), (valid, counted)))
    return *_packed(both, kept, both.shape[1]), jnp.sum(valid, axis=1, dtype=jnp.int32)


def _cut(u: jax.Array, items: jax.Array, parts: jax.Array, max_parts: int) -> jax.Array:
    """Sizes, int [max_parts], of a random cut of `items` items into `parts` non-empty parts; unused entries are 0."""
    item = jnp.arange(len(u))
    lot = jnp.where((item >= 1) & (item < items), u, 2.0)  # a part may begin at every item except the first
    begins = jnp.argsort(jnp.argsort(lot)) < parts - 1
    part = jnp.where(item < items, jnp.cumsum(begins), max_parts)
    return jnp.where(parts > 0, jnp.zeros(max_parts, jnp.int32).at[part].add(1, mode="drop"), 0)


def _packed(rows: jax.Array, kept: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """`pack_tokens` of each row."""
    return jax.vmap(functools.partial(pack_tokens, size=size))(rows, kept)


def pack_tokens(row: jax.Array, kept: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Moves the kept elements to the front of a row of `size`; returns it and a mask of the filled entries."""
    order = jnp.argsort(~kept, stable=True)[:size]
    valid = jnp.arange(size) < jnp.sum(kept)
    return jnp.where(valid, row[order], 0).astype(jnp.int32), valid
