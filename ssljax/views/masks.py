"""Random masks of patches, and the token corruption of BERT."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.views.keys import fold_in, uniforms
from ssljax.views.texts import choose_words, word_numbers


def random_patch_mask(keys: jax.Array, patches: int, ratio: float) -> tuple[jax.Array, jax.Array]:
    """Hides a random subset of the patches of each example (He et al. 2022, section 3).

    The visible patches of an example are a uniform subset of size K = `visible_patches(patches, ratio)`.

    Args:
        keys: random keys [B].
        patches: number of patches of an example.
        ratio: share of hidden patches.

    Returns:
        keep: int32 [B, K], ascending positions of the visible patches.
        mask: bool [B, patches], True = hidden.
    """
    k = visible_patches(patches, ratio)
    noise_BxN = uniforms(keys, patches)
    order_BxN = jnp.argsort(noise_BxN, axis=1)
    keep_BxK = jnp.sort(order_BxN[:, :k], axis=1).astype(jnp.int32)
    visible = jax.vmap(lambda keep: jnp.zeros(patches, bool).at[keep].set(True))(keep_BxK)
    return keep_BxK, ~visible


def random_masks(keys: jax.Array, patches: int, ratio: tuple[float, float], probability: float = 1.0) -> jax.Array:
    """Hides a random number of random patches of some examples, bool [B, patches], True = hidden.

    With the given probability, an example hides round(r * patches) patches, a uniform subset, r uniform in `ratio`
    (Zhou et al. 2022, "iBOT", section 4.1: (0.1, 0.5) with probability 0.5); else none.

    Args:
        keys: random keys [B].
        patches: number of patches of an example.
        ratio: range of the share of hidden patches.
        probability: share of the examples that hide patches.
    """
    u = uniforms(keys, patches + 2)
    share = ratio[0] + (ratio[1] - ratio[0]) * u[:, :1]
    count = jnp.where(u[:, 1:2] < probability, jnp.round(share * patches), 0)
    rank = jnp.argsort(jnp.argsort(u[:, 2:], 1), 1)
    return rank < count


def random_blocks(
    keys: jax.Array, grid: tuple[int, int], blocks: int, scale: tuple[Any, Any], aspect: tuple[float, float]
) -> jax.Array:
    """Draws rectangular blocks of patches, bool [B, blocks, N], N = rows * columns in raster order.

    The share of the patches in a block is uniform in `scale` and its height / width is uniform in `aspect`; sides are
    rounded, at least 1 and at most those of the grid: a block that is too high is wider instead. The place of a block
    is uniform (Assran et al. 2023, "I-JEPA", appendix A; there all images of a batch have blocks of one size).

    Args:
        keys: random keys [B].
        grid: rows and columns of the patches.
        blocks: number of blocks.
        scale: range of the share of the patches, numbers or arrays.
        aspect: range of height / width.
    """
    rows, columns = grid
    u = uniforms(keys, 4 * blocks).reshape(-1, blocks, 4)
    area = rows * columns * (scale[0] + (scale[1] - scale[0]) * u[..., 0])
    ratio = aspect[0] + (aspect[1] - aspect[0]) * u[..., 1]
    high, wide = jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)
    height = jnp.clip(jnp.round(jnp.where(wide > columns, area / columns, high)), 1, rows)
    width = jnp.clip(jnp.round(jnp.where(high > rows, area / rows, wide)), 1, columns)
    top, left = jnp.floor(u[..., 2] * (rows - height + 1)), jnp.floor(u[..., 3] * (columns - width + 1))
    row, column = jnp.arange(rows), jnp.arange(columns)
    inside_rows = (row >= top[..., None]) & (row < (top + height)[..., None])
    inside_columns = (column >= left[..., None]) & (column < (left + width)[..., None])
    return (inside_rows[..., :, None] & inside_columns[..., None, :]).reshape(*u.shape[:2], -1)


def random_block_mask(
    keys: jax.Array,
    grid: tuple[int, int],
    ratio: float,
    smallest: int = 16,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    draws: int = 60,
) -> jax.Array:
    """Hides blocks of patches of each example until their number is reached, bool [B, N], True = hidden.

    Bao, Dong, Piao, Wei 2022, "BEiT: BERT Pre-Training of Image Transformers", algorithm 1. The area of a block is
    uniform between `smallest` and the number of patches that are left to hide (at least `smallest`), the logarithm of
    its height / width is uniform in that of `aspect`; sides are rounded, and the place is uniform. Blocks may overlap.
    A block that would hide too many patches, or is larger than the grid, is drawn again. After `draws` draws, random
    visible patches fill the number up, so that every example hides exactly round(ratio N) of N = rows * columns.

    Args:
        keys: random keys [B].
        grid: rows and columns of the patches.
        ratio: share of hidden patches.
        smallest: least area of a block, in patches.
        aspect: range of height / width.
        draws: number of draws.
    """
    rows, columns = grid
    count, (low, high) = round(ratio * rows * columns), (math.log(a) for a in aspect)
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)

    def draw(mask: jax.Array, u: jax.Array) -> tuple[jax.Array, None]:
        left = count - jnp.sum(mask)
        area = smallest + (jnp.maximum(left, smallest) - smallest) * u[0]
        root = jnp.exp((low + (high - low) * u[1]) / 2)  # of height / width
        height, width = jnp.round(jnp.sqrt(area) * root), jnp.round(jnp.sqrt(area) / root)
        top, start = jnp.floor(u[2] * (rows - height + 1)), jnp.floor(u[3] * (columns - width + 1))
        inside = (row >= top) & (row < top + height) & (column >= start) & (column < start + width)
        fits = (height <= rows) & (width <= columns) & (jnp.sum(inside & ~mask) <= left)
        return jnp.where(fits, mask | inside, mask), None

    u = uniforms(keys, 4 * draws + rows * columns)
    blocks = jax.vmap(lambda u: jax.lax.scan(draw, jnp.zeros(grid, bool), u.reshape(draws, 4))[0])(u[:, : 4 * draws])
    chosen = random_subset(u[:, 4 * draws :], blocks.reshape(len(u), -1), count)  # those of blocks, then others
    return jax.vmap(lambda chosen: jnp.zeros(rows * columns, bool).at[chosen].set(True))(chosen)


def random_subset(keys: jax.Array, rank: jax.Array, count: int) -> jax.Array:
    """Draws `count` different places of each row, int32 [B, count]: those of the highest rank, at random among equals.

    Args:
        keys: random keys [B].
        rank: int or bool [B, N].
        count: number of places, at most N.
    """
    order = jnp.argsort(uniforms(keys, rank.shape[1]) - rank.astype(jnp.float32), 1)
    return order[:, :count].astype(jnp.int32)


def visible_patches(patches: int, ratio: float) -> int:
    """Returns the number of visible patches, `patches - round(patches * ratio)`.

    Raises:
        UserError: no patch would be visible, or the ratio is outside [0, 1).
    """
    visible = patches - round(patches * ratio)
    if not 0 <= ratio < 1 or visible < 1:
        raise UserError(
            f"mask ratio: got {ratio}, which leaves {visible} of {patches} patches visible, must leave at least 1"
        )
    return visible


class MaskedTokens(NamedTuple):
    """Tokens that `mlm_corrupt` has corrupted.

    Attributes:
        tokens: int [B, T], the inputs, in the dtype of the original tokens.
        unit: int32 [B, T], the number of the chosen token, word or span that a token is in, from 1 on; 0 = not chosen.
    """

    tokens: jax.Array
    unit: jax.Array

    @property
    def chosen(self) -> jax.Array:
        """bool [B, T], True at positions whose original token is to be predicted."""
        return self.unit > 0


def mlm_corrupt(
    keys: jax.Array,
    tokens: jax.Array,
    maskable: jax.Array,
    *,
    vocab_size: int,
    mask_id: int,
    rate: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    special_ids: Sequence[int] = (),
    word_starts: jax.Array | None = None,
    spans: tuple[float, int] | None = None,
    segment_ids: jax.Array | None = None,
) -> MaskedTokens:
    """Corrupts tokens for masked language modelling (BERT, Devlin et al. 2019, section 3.1 and appendix A.1).

    A row with n candidates has floor(rate n) or ceil(rate n) chosen tokens, rate n on average. As in BERT and RoBERTa
    this number is fixed up to rounding; its bound `mlm_budget` lets the loss gather the chosen tokens. A chosen token
    becomes `mask_id` with probability `mask_share` and a uniform ordinary token with probability `random_share`;
    otherwise it stays unchanged. Whole words are chosen up to this number of tokens (`choose_words`).

    Args:
        keys: random keys [B].
        tokens: int [B, T].
        maskable: bool [B, T], False for padding and for positions without a loss. Tokens in `special_ids` or equal
            to `mask_id` are never candidates.
        vocab_size: random tokens come from [0, vocab_size) without `special_ids` and `mask_id`.
        mask_id: id of the mask token.
        rate: share of the candidates that are chosen; a Python number, since it bounds a shape (`mlm_budget`).
        mask_share, random_share: probabilities of the two replacements.
        special_ids: ids that are neither candidates nor replacements.
        word_starts: bool [B, T], True for tokens that begin a word: all tokens of a word are chosen together, and each
            has its own fate, as in BERT's code; None: single tokens.
        spans: (p, longest): spans of tokens, or of words, are chosen by `choose_spans`, and each has one of the three
            fates as a whole (SpanBERT, Joshi et al. 2020, section 3.1: (0.2, 10), of words); None: no spans.
        segment_ids: int [B, T]; no span crosses a border of segments. None: one segment.
    """
    length = tokens.shape[1]
    specials = jnp.array(sorted({mask_id, *special_ids}), tokens.dtype)
    candidate_BxT = maskable.astype(bool) & ~(tokens[..., None] == specials).any(-1)

    u = uniforms(keys, 2 * length + 1)
    lot_BxT, fate_BxT, round_B = u[:, :length], u[:, length:-1], u[:, -1]
    count_B = jnp.minimum(jnp.floor(rate * candidate_BxT.sum(1) + round_B), mlm_budget(length, rate))
    words_BxT = None if word_starts is None else word_numbers(word_starts, candidate_BxT, segment_ids)
    if spans is not None:
        most = mlm_budget(length, rate)
        unit_BxT = choose_spans(fold_in(keys, 2), candidate_BxT, count_B, most, *spans, segment_ids, words_BxT)
        fate_BxT = jnp.take_along_axis(fate_BxT, unit_BxT % length, 1)  # there are fewer spans than tokens
    elif words_BxT is not None:
        unit_BxT = choose_words(lot_BxT, candidate_BxT, count_B, words_BxT)
    else:
        order_BxT = jnp.argsort(jnp.where(candidate_BxT, lot_BxT, 2.0), axis=1)  # candidates first
        rank_BxT = jnp.argsort(order_BxT, axis=1)
        unit_BxT = jnp.where(candidate_BxT & (rank_BxT < count_B[:, None]), rank_BxT + 1, 0)

    random_BxT = _random_tokens(fold_in(keys, 1), length, vocab_size, sorted({mask_id, *special_ids}))
    random_BxT = jnp.where(fate_BxT < mask_share + random_share, random_BxT, tokens)
    corrupted = jnp.where(fate_BxT < mask_share, mask_id, random_BxT)
    return MaskedTokens(jnp.where(unit_BxT > 0, corrupted, tokens).astype(tokens.dtype), unit_BxT)


def diffusion_mask(keys: jax.Array, candidate: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Masks k of the n candidates of each row, all subsets of k equally likely.

    With a uniform share, k is uniform in 1 to n, and the mean of n / k times the sum of a cost over the masked tokens
    equals the integral over t in [0, 1] of 1 / t times the expected cost of tokens that are masked independently with
    probability t: the bound of masked diffusion (Sahoo et al. 2024, eq. 11).

    Args:
        keys: random keys [B].
        candidate: bool [B, T].
        share: float [B] in [0, 1); k = 1 + floor(share n).

    Returns:
        chosen: bool [B, T]; none in a row without candidates.
        weight: float32 [B], n / k; 0 in a row without candidates.
    """
    n = jnp.sum(candidate, 1).astype(jnp.float32)
    k = jnp.minimum(1 + jnp.floor(share * n), n)
    lots = jnp.where(candidate, uniforms(keys, candidate.shape[1]), 2.0)
    rank = jnp.argsort(jnp.argsort(lots, 1), 1)  # candidates first
    return candidate & (rank < k[:, None]), jnp.where(n > 0, n / jnp.maximum(k, 1), 0.0)


def factorization_order(keys: jax.Array, candidate: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
    """Draws the order in which the tokens of each row are predicted (Yang et al. 2019, "XLNet", section 2.2).

    Args:
        keys: random keys [B].
        candidate: bool [B, T], False for padding and special tokens, which come before all others.
        share: share of the n candidates, max(1, floor(share n)) of them, at the end of the order.

    Returns:
        rank: int32 [B, T], place in the order; -1 for tokens that are no candidates.
        last: bool [B, T], True for the candidates at the end of the order.
    """
    lots = jnp.where(candidate, uniforms(keys, candidate.shape[1]), -1.0)
    rank = jnp.argsort(jnp.argsort(lots, axis=1), axis=1).astype(jnp.int32)
    n = jnp.sum(candidate, 1)
    count = jnp.maximum(1, jnp.floor(share * n + 1e-6)).astype(jnp.int32)
    last = candidate & (rank >= (candidate.shape[1] - count)[:, None])
    return jnp.where(candidate, rank, -1), last


def _random_tokens(keys: jax.Array, length: int, vocab_size: int, specials: Sequence[int]) -> jax.Array:
    """Draws uniform ordinary tokens, int32 [B, length]; `specials` are sorted."""
    ordinary = vocab_size - len(specials)
    number_BxT = jax.vmap(lambda key: jax.random.randint(key, (length,), 0, ordinary))(keys)
    for special in specials:  # maps k to the k-th ordinary token
        number_BxT += number_BxT >= special
    return number_BxT


def choose_spans(
    keys: jax.Array,
    candidate: jax.Array,
    count: jax.Array,
    most: int,
    p: float,
    longest: int,
    segment_ids: jax.Array | None = None,
    words: jax.Array | None = None,
) -> jax.Array:
    """Chooses spans of tokens until their number is reached (SpanBERT, Joshi et al. 2020, section 3.1).

    Lengths have the geometric distribution with parameter `p` on 1 to `longest` (0.2 and 10: mean 3.8), and are cut to
    the number of tokens that is left; first tokens are uniform. A span that overlaps another one, or a token that is
    no candidate, is drawn again.

    Args:
        keys: random keys [B].
        candidate: bool [B, T].
        count: [B], number of tokens to choose.
        most: largest possible count; a Python number.
        p, longest: see above.
        segment_ids: int [B, T]; a span that crosses a border of segments is drawn again. None: one segment.
        words: int32 [B, T], the word of each token (`word_numbers`): lengths are numbers of words, first words are
            uniform, and a span is cut to the whole words that fit into the tokens that are left. None: lengths are
            numbers of tokens.

    Returns:
        int32 [B, T], the number of the span from 1 on, 0 = not chosen. After 20 `most` draws, fewer tokens than
        `count` may have been chosen: among few candidates without long runs.
    """
    length = candidate.shape[1]
    end = (1 - p) ** longest
    tail = jnp.array([((1 - p) ** k - end) / (1 - end) for k in range(1, longest)])  # P(length > k)

    segments = jnp.zeros(candidate.shape, jnp.int32) if segment_ids is None else segment_ids
    border = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0  # True at the first token of a further segment

    words = jnp.broadcast_to(jnp.arange(length), candidate.shape) if words is None else words

    def row(key: jax.Array, candidate: jax.Array, count: jax.Array, border: jax.Array, words: jax.Array) -> jax.Array:
        sizes = jnp.zeros(length, jnp.int32).at[words].add(1)
        ends = jnp.cumsum(sizes)[words]  # place after the word of each token
        u = jax.random.uniform(key, (20 * most, 2))

        def draw(span: jax.Array, u: jax.Array) -> tuple[jax.Array, None]:
            left = count - jnp.sum(span > 0)
            size = jnp.minimum(jnp.minimum(1 + jnp.sum(u[0] < tail), left), words[-1] + 1)
            first = jnp.floor(u[1] * (words[-1] - size + 2))
            inside = (words >= first) & (words < first + size) & (ends - jnp.sum(words < first) <= left)
            crosses = jnp.any(border & inside & (words > first))
            free = jnp.all(~inside | (candidate & (span == 0))) & (size > 0) & ~crosses
            return jnp.where(inside & free, jnp.max(span) + 1, span), None

        return jax.lax.scan(draw, jnp.zeros(length, jnp.int32), u)[0]

    return jax.vmap(row)(keys, candidate, count, border, words)


def mlm_budget(length: int, rate: float) -> int:
    """Returns the largest number of tokens that `mlm_corrupt` chooses in a row of `length`: ceil(rate * length)."""
    return math.ceil(rate * length)
