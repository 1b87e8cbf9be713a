"""Words, borders of spans and pairs of sentences in rows of tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax.views.keys import uniforms


def word_numbers(begins: jax.Array, candidate: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """Returns the number of the word of each token, int32 [B, T], from 0 on in a row.

    A word begins at a token that begins words, at the first token of a row or a segment, and after a token that is no
    candidate. Each token that is no candidate is a word of its own.

    Args:
        begins: bool [B, T], True for tokens that begin a word, such as those that begin with a space.
        candidate: bool [B, T], False for padding and special tokens.
        segment_ids: int [B, T]; None: one segment.
    """
    first = begins | ~candidate | jnp.pad(~candidate, ((0, 0), (1, 0)))[:, :-1]
    if segment_ids is not None:
        first |= jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
    return jnp.cumsum(first.at[:, 0].set(True), axis=1).astype(jnp.int32) - 1


def choose_words(keys: jax.Array, candidate: jax.Array, count: jax.Array, words: jax.Array) -> jax.Array:
    """Chooses whole words in random order, each if it fits into the number of tokens that is left.

    Whole-word masking of BERT's code of May 2019, and the word-level masks of ERNIE (Sun et al. 2019, section 3.2).

    Args:
        keys: random keys [B].
        candidate: bool [B, T]; the tokens of a word are all candidates, or none of them is.
        count: [B], largest number of tokens to choose; fewer are chosen if no further word fits.
        words: int32 [B, T], the word of each token (`word_numbers`).

    Returns:
        int32 [B, T], the number of the chosen word from 1 on, in the order of choice; 0 = not chosen.
    """
    length = candidate.shape[1]

    def row(u: jax.Array, candidate: jax.Array, count: jax.Array, words: jax.Array) -> jax.Array:
        sizes = jnp.zeros(length, jnp.int32).at[words].add(candidate.astype(jnp.int32))

        def choose(
            state: tuple[jax.Array, jax.Array], word: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            left, chosen = state
            fits = (sizes[word] > 0) & (sizes[word] <= left)
            chosen += fits
            return (left - fits * sizes[word], chosen), fits * chosen

        order = jnp.argsort(u)
        _, numbers = jax.lax.scan(choose, (count.astype(jnp.int32), jnp.int32(0)), order)
        return jnp.zeros(length, jnp.int32).at[order].set(numbers)[words]

    return jax.vmap(row)(uniforms(keys, length), candidate, count, words)


class Boundary(NamedTuple):
    """The tokens around the spans of a row, for each token.

    Attributes:
        left, right: int32 [B, T], positions before the first and after the last token of the span.
        place: int32 [B, T], position in the span, from 0 on.
        inside: bool [B, T], True for tokens of spans that have tokens of the same text on both sides.
    """

    left: jax.Array
    right: jax.Array
    place: jax.Array
    inside: jax.Array


def span_boundary(spans: jax.Array, segment_ids: jax.Array | None = None) -> Boundary:
    """Finds the two tokens around each span (SpanBERT, Joshi et al. 2020, section 3.2).

    Args:
        spans: int32 [B, T], the number of the span of each token, 0 = none (`choose_spans`).
        segment_ids: int [B, T]; a token of another segment is not on a side of a span. None: one segment.
    """
    length = spans.shape[1]
    at = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), spans.shape)
    changes = jnp.diff(spans, axis=1) != 0
    begins = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    ends = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    first = jax.lax.cummax(jnp.where(begins, at, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, at, length), axis=1, reverse=True)
    left, right = jnp.maximum(first - 1, 0), jnp.minimum(last + 1, length - 1)
    inside = (spans > 0) & (first > 0) & (last < length - 1)
    if segment_ids is not None:
        of = lambda where: jnp.take_along_axis(segment_ids, where, axis=1)  # noqa: E731
        inside &= (of(left) == segment_ids) & (of(right) == segment_ids)
    return Boundary(left, right, at - first, inside)


class SentencePairs(NamedTuple):
    """Rows of two segments.

    Attributes:
        tokens: int [B, T].
        token_types: int32 [B, T], 0 up to the separator of the first segment, then 1.
        segment_ids: int32 [B, T], 1, and 0 for padding.
        apart: bool [B], True if the second segment is not the one that follows the first in the text.
        whole: bool [B], False if a segment is empty.
    """

    tokens: jax.Array
    token_types: jax.Array
    segment_ids: jax.Array
    apart: jax.Array
    whole: jax.Array


def sentence_pairs(
    keys: jax.Array,
    tokens: jax.Array,
    other: jax.Array | None = None,
    *,
    first_id: int | None = None,
    separator_id: int | None = None,
    pad_id: int = 0,
) -> SentencePairs:
    """Makes pairs of segments, of which a random half does not follow each other in the text.

    The segments A and B are the halves of the text of a row, as far as there is room beside the special tokens: [first]
    A [separator] B [separator]. With `other`, B is the second half of another text with probability 1/2 (next-sentence
    prediction of BERT, Devlin et al. 2019, section 3.1); without it, A and B change places (sentence-order prediction
    of ALBERT, Lan et al. 2020, section 3.1).

    Args:
        keys: random keys [B].
        tokens: int [B, T], negative where a row has no text.
        other: int [B, T], other rows; None: the segments change places.
        first_id: token before the first segment; None: none.
        separator_id: token after each segment; None: none.
        pad_id: token of padding.
    """
    length = tokens.shape[1]
    before, after = int(first_id is not None), int(separator_id is not None)
    room = length - before - 2 * after

    def halves(row: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the text at the front of a row, from its second half on in another, and the size of a half."""
        text = row[jnp.argsort(row < 0, stable=True)]
        size = jnp.minimum(jnp.sum(row >= 0), room) // 2
        return text, jnp.roll(text, -size), size

    def pair(u: jax.Array, row: jax.Array, other: jax.Array | None) -> SentencePairs:
        apart, (first, second, size) = u < 0.5, halves(row)
        sizes = (size, size)
        if other is None:
            first, second = (jnp.where(apart, x, y) for x, y in ((second, first), (first, second)))
        else:
            _, from_other, other_size = halves(other)
            second, sizes = jnp.where(apart, from_other, second), (size, jnp.where(apart, other_size, size))
        at = jnp.arange(length)
        middle = before + sizes[0] + after  # where the second segment begins
        end = middle + sizes[1] + after
        out = jnp.where(at < middle, jnp.roll(first, before), jnp.roll(second, middle))
        if separator_id is not None:
            out = jnp.where((at == middle - 1) | (at == end - 1), separator_id, out)
        if first_id is not None:
            out = jnp.where(at == 0, first_id, out)
        out = jnp.where(at < end, out, pad_id).astype(tokens.dtype)
        types, inside = ((at >= middle) & (at < end)).astype(jnp.int32), (at < end).astype(jnp.int32)
        return SentencePairs(out, types, inside, apart, (sizes[0] > 0) & (sizes[1] > 0))

    return jax.vmap(pair, in_axes=(0, 0, None if other is None else 0))(uniforms(keys, 1)[:, 0], tokens, other)
