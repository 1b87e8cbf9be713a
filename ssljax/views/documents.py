"""Corruptions of texts: infilling, permuted sentences, deletion, rotation (BART), gap sentences (PEGASUS).

Texts are tokens [B, T] and a mask `valid` [B, T] without padding. Special tokens are neither hidden nor moved.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.views.keys import uniforms
from ssljax.views.spans import Denoising, pack_tokens

_CHANCE = 1e-6  # of more spans than `_most_spans`


def permute_sentences(
    keys: jax.Array, tokens: jax.Array, valid: jax.Array, *, ends: Sequence[int], special_ids: Sequence[int] = ()
) -> jax.Array:
    """Puts the sentences of each text in random order, int [B, T] (Lewis et al. 2020, "BART", section 2.2).

    Args:
        keys: random keys [B].
        tokens: int [B, T].
        valid: bool [B, T], False at padding.
        ends: ids of the tokens that end a sentence; see `sentence_numbers`.
        special_ids: ids that stay at their places.
    """
    ordinary = _ordinary(tokens, valid, special_ids)
    lot = jnp.take_along_axis(uniforms(keys, tokens.shape[1]), sentence_numbers(tokens, ordinary, ends), 1)
    return _reordered(tokens, ordinary, lot)


def rotate_text(keys: jax.Array, tokens: jax.Array, valid: jax.Array, *, special_ids: Sequence[int] = ()) -> jax.Array:
    """Rotates each text so that it begins with a token that is drawn uniformly, int [B, T] (BART, section 2.2).

    Args:
        keys, tokens, valid, special_ids: see `permute_sentences`.
    """
    ordinary = _ordinary(tokens, valid, special_ids)
    count = jnp.maximum(jnp.sum(ordinary, 1, keepdims=True), 1)
    first = jnp.floor(uniforms(keys, 1) * count).astype(jnp.int32)
    return _reordered(tokens, ordinary, (jnp.cumsum(ordinary, 1) - 1 - first) % count)


def delete_tokens(
    keys: jax.Array, tokens: jax.Array, valid: jax.Array, *, rate: float, special_ids: Sequence[int] = ()
) -> tuple[jax.Array, jax.Array]:
    """Deletes floor(rate n) or ceil(rate n) of the n ordinary tokens of a text, rate n on average (BART, section 2.2).

    Args:
        keys, tokens, valid, special_ids: see `permute_sentences`.
        rate: share of the tokens.

    Returns:
        The other tokens int32 [B, T], and a mask bool [B, T] without padding.
    """
    length = tokens.shape[1]
    ordinary, u = _ordinary(tokens, valid, special_ids), uniforms(keys, length + 1)
    count = jnp.floor(rate * jnp.sum(ordinary, 1, keepdims=True) + u[:, -1:])
    deleted = ordinary & (_ranks(jnp.where(ordinary, u[:, :-1], 2.0)) < count)
    return jax.vmap(pack_tokens, (0, 0, None))(tokens, valid & ~deleted, length)


def infill_spans(
    keys: jax.Array,
    tokens: jax.Array,
    valid: jax.Array,
    *,
    mask_id: int,
    rate: float = 0.3,
    mean_span: float = 3.0,
    special_ids: Sequence[int] = (),
) -> tuple[jax.Array, jax.Array]:
    """Replaces spans of tokens by one mask token each; a span may be empty (Lewis et al. 2020, "BART", section 2.2).

    Lengths of spans are drawn from a Poisson distribution until they sum to floor(rate n + 1/2) of the n ordinary
    tokens; the last one is cut to this sum. All orders of the masks and the tokens that stay are equally likely. A
    span around a special token leaves that token, after the mask.

    Args:
        keys, tokens, valid, special_ids: see `permute_sentences`.
        mask_id: id of the mask token.
        rate: share of the tokens that are hidden.
        mean_span: mean of the Poisson distribution.

    Returns:
        Tokens int32 [B, S] and a mask bool [B, S] without padding, S = `infilled_length`. What does not fit is cut.
    """
    length, most = tokens.shape[1], _most_spans(math.floor(rate * tokens.shape[1] + 0.5), mean_span)
    size, slots = infilled_length(length, rate, mean_span), length + most
    below, place = jnp.asarray(_poisson(mean_span), jnp.float32), jnp.arange(length)
    u = uniforms(keys, most + slots)

    def fill(row: jax.Array, fixed: jax.Array, ordinary: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        n = jnp.sum(ordinary)
        hidden = jnp.floor(rate * n + 0.5).astype(jnp.int32)
        drawn = jnp.sum(u[:most, None] >= below, 1)  # [K], lengths of spans
        before = jnp.cumsum(drawn) - drawn
        spans = jnp.sum(before < hidden)
        drawn = jnp.where(before < hidden, jnp.minimum(drawn, hidden - before), 0)
        # Masks and kept tokens stand in slots; `at` is the place of a kept token, or of the first token of a span.
        filled = jnp.arange(slots) < n - jnp.sum(drawn) + spans
        is_mask = _ranks(jnp.where(filled, u[most:], 2.0)) < spans
        masks = jnp.cumsum(is_mask) - is_mask
        number = jnp.arange(slots) - masks + jnp.append(0, jnp.cumsum(drawn))[masks]
        places = jnp.argsort(~ordinary, stable=True)
        at = jnp.where(number < n, places[jnp.clip(number, 0, length - 1)], places[jnp.maximum(n - 1, 0)] + 1)
        last = 2 * length + 2
        order = jnp.append(jnp.where(filled, 2 * at + ~is_mask, last), jnp.where(fixed, 2 * place + 1, last))
        values = jnp.append(jnp.where(is_mask, mask_id, row[jnp.clip(at, 0, length - 1)]), row)
        chosen = jnp.argsort(order, stable=True)[:size]
        ok = order[chosen] < last
        return jnp.where(ok, values[chosen], 0), ok

    ordinary = _ordinary(tokens, valid, special_ids)
    return jax.vmap(fill)(tokens.astype(jnp.int32), valid & ~ordinary, ordinary, u)


def infilled_length(length: int, rate: float, mean_span: float) -> int:
    """Returns S, the number of tokens of `infill_spans` for rows of `length`: more than `length` if spans are short."""
    hidden = math.floor(rate * length + 0.5)
    return length + max(0, _most_spans(hidden, mean_span) - hidden)


def gap_sentences(
    keys: jax.Array,
    tokens: jax.Array,
    valid: jax.Array,
    *,
    ends: Sequence[int],
    mask_id: int,
    end_id: int,
    rate: float = 0.3,
    unmasked: float = 0.0,
    choice: Literal["rouge", "random", "lead"] = "rouge",
    special_ids: Sequence[int] = (),
    longest: int | None = None,
) -> Denoising:
    """Hides sentences, one mask token for each; the targets list them (Zhang et al. 2020, "PEGASUS", section 3.1).

    Of n sentences, floor(rate n + 1/2) are chosen, at least one and at most n - 1; of one sentence, none.

    Args:
        keys, tokens, valid, ends, special_ids: see `permute_sentences`.
        mask_id: id of the mask token.
        end_id: id of the token that ends a target.
        rate: share of the sentences.
        unmasked: probability that a chosen sentence stays in the input.
        choice: "rouge": those with the highest `rouge_scores` ("Ind-Orig"); "random"; "lead": the first ones.
        longest: number of tokens U of a row of targets, to which they are cut; None: T.
    """
    length, size = tokens.shape[1], longest or tokens.shape[1]
    ordinary = _ordinary(tokens, valid, special_ids)
    number = sentence_numbers(tokens, ordinary, ends)  # [B, T]
    count = jnp.max(jnp.where(ordinary, number + 1, 0), 1)
    u = uniforms(keys, 2 * length)
    first = jnp.broadcast_to(jnp.arange(length), tokens.shape).astype(jnp.float32)
    by_rank = {"random": lambda: u[:, :length], "lead": lambda: first}
    by_rank["rouge"] = lambda: -rouge_scores(tokens, number, ordinary)
    rank = _ranks(jnp.where(first < count[:, None], by_rank[choice](), jnp.inf))  # [B, sentences]
    gaps = jnp.where(count < 2, 0, jnp.clip(jnp.floor(rate * count + 0.5), 1, jnp.maximum(count - 1, 1)))
    chosen = rank < gaps[:, None]
    of_token = lambda mask: ordinary & jnp.take_along_axis(mask, number, 1)  # noqa: E731
    target, masked = of_token(chosen), of_token(chosen & (u[:, length:] >= unmasked))
    begins = masked & (number != jnp.pad(jnp.where(ordinary, number, -1), ((0, 0), (1, 0)), constant_values=-1)[:, :-1])

    def parts(row: jax.Array, kept: jax.Array, begins: jax.Array, target: jax.Array) -> Denoising:
        read = pack_tokens(jnp.where(begins, mask_id, row), kept | begins, length)
        written, counted = pack_tokens(row, target, size)
        total = jnp.sum(target)
        written = written.at[jnp.where(total > 0, total, size)].set(end_id, mode="drop")
        return Denoising(*read, written, counted | ((jnp.arange(size) == total) & (total > 0)))

    return jax.vmap(parts)(tokens.astype(jnp.int32), valid & ~masked, begins, target)


def rouge_scores(tokens: jax.Array, number: jax.Array, counted: jax.Array) -> jax.Array:
    """ROUGE-1 F1 of each sentence and the rest of the text, float32 [B, T] (Lin 2004); 0 where there is no sentence.

    With m = the sum over words of min(occurrences in the sentence, occurrences in the rest), precision is m / (words of
    the sentence) and recall m / (words of the rest), so that F1 = 2 m / (words of the text). Words are tokens.

    Args:
        tokens: int [B, T].
        number: int [B, T], number of the sentence of each token.
        counted: bool [B, T], False at tokens that are no words.
    """
    pair = counted[:, :, None] & counted[:, None]
    same = pair & (tokens[:, :, None] == tokens[:, None])  # [B, T, T]
    together = number[:, :, None] == number[:, None]
    inside, everywhere = jnp.sum(same & together, 2), jnp.sum(same, 2)
    share = jnp.minimum(inside, everywhere - inside) / jnp.maximum(inside, 1)  # of each occurrence
    sentence = number[:, None] == jnp.arange(tokens.shape[1])[:, None]  # [B, sentences, T]
    matches = jnp.round(jnp.sum(jnp.where(sentence, share[:, None], 0), 2))  # a whole number, but for round-off
    return 2 * matches / jnp.maximum(jnp.sum(counted, 1, keepdims=True), 1)


def sentence_numbers(tokens: jax.Array, ordinary: jax.Array, ends: Sequence[int]) -> jax.Array:
    """Returns the number of the sentence of each ordinary token, from 0 on, int32 [B, T].

    A sentence ends after the last of successive tokens in `ends`, and before any other than an ordinary token.

    Args:
        tokens: int [B, T].
        ordinary: bool [B, T], False at padding and special tokens.
        ends: ids of the tokens that end a sentence.
    """
    end = jnp.isin(tokens, jnp.asarray(ends, tokens.dtype)) & ordinary
    before = lambda x: jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]  # noqa: E731
    begins = ordinary & (~before(ordinary) | (before(end) & ~end))
    return jnp.maximum(jnp.cumsum(begins, 1) - 1, 0)


def _ordinary(tokens: jax.Array, valid: jax.Array, special_ids: Sequence[int]) -> jax.Array:
    return valid & ~jnp.isin(tokens, jnp.asarray(special_ids, tokens.dtype))


def _ranks(values: jax.Array) -> jax.Array:
    """Returns the rank of each element along the last axis, from 0 on; the first of equals has the lowest."""
    return jnp.argsort(jnp.argsort(values, -1, stable=True), -1)


def _reordered(tokens: jax.Array, ordinary: jax.Array, rank: jax.Array) -> jax.Array:
    """Puts the ordinary tokens in the order of their ranks, equals in their old order, at the places that they had."""
    source = jnp.argsort(jnp.where(ordinary, rank, jnp.inf), 1, stable=True)
    places = jnp.argsort(~ordinary, 1, stable=True)
    move = lambda row, places, source: row.at[places].set(row[source])  # noqa: E731
    return jax.vmap(move)(tokens, places, source)


def _poisson(mean: float) -> np.ndarray:
    """Returns P(X <= k) of the Poisson distribution for k = 0, 1, ... until it is 1 but for 1e-9."""
    top = math.ceil(mean + 10 * math.sqrt(mean) + 20)
    return np.cumsum([math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(top)])


def _most_spans(hidden: int, mean: float) -> int:
    """Returns the least number of Poisson lengths whose sum is below `hidden` with a probability of at most 1e-6."""
    count = math.ceil(hidden / mean)
    while hidden and _poisson(count * mean)[hidden - 1] > _CHANCE:
        count += 1
    return count
