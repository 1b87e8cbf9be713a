"""Corruptions of texts against loops, and the distributions of what they hide, of orders and of lengths."""

import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssljax import views

MASK, END, SPECIAL, ENDS = 1, 2, (0, 1, 2, 3), (4, 5, 6)
OPTIONS = {"special_ids": SPECIAL}


def keys(seed, n):
    return views.example_keys(jax.random.key(seed), n)


def texts(seed, rows=4, length=24):
    """Tokens, some of them special, some of them ends of sentences, and a mask without padding at the end."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, 20, (rows, length))
    tokens[rng.random(tokens.shape) < 0.1] = 3
    sizes = np.array([length, 0, *rng.integers(1, length + 1, rows - 2)])
    valid = np.arange(length) < sizes[:, None]
    return jnp.asarray(np.where(valid, tokens, 0)), jnp.asarray(valid)


def sentences(row):
    """The sentences of a row of tokens without padding, as lists of (place, token)."""
    out, new = [], True
    for i, token in enumerate(row):
        if token in SPECIAL:
            new = True
            continue
        after_end = i > 0 and row[i - 1] in ENDS and token not in ENDS
        if new or after_end:
            out.append([])
        new = False
        out[-1].append((i, int(token)))
    return out


def ordinary(row):
    return [int(token) for token in row if token not in SPECIAL]


def joined(parts):
    return list(itertools.chain.from_iterable(parts))


def specials(row):
    return [int(token) for token in row if token in SPECIAL and token != MASK]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_order_of_sentences_and_rotations_by_loops(seed):
    tokens, valid = texts(seed)
    permuted = np.asarray(views.permute_sentences(keys(seed, 4), tokens, valid, ends=ENDS, **OPTIONS))
    rotated = np.asarray(views.rotate_text(keys(seed, 4), tokens, valid, **OPTIONS))
    numbers = np.asarray(views.sentence_numbers(tokens, valid & ~jnp.isin(tokens, jnp.array(SPECIAL)), ENDS))
    for row in range(4):
        n = int(valid[row].sum())
        before = np.asarray(tokens[row, :n])
        for made in (permuted[row], rotated[row]):
            assert (made[n:] == np.asarray(tokens[row, n:])).all()
            assert [(i, x) for i, x in enumerate(before) if x in SPECIAL] == [
                (i, x) for i, x in enumerate(made[:n]) if x in SPECIAL
            ]
        found = sentences(before)
        assert [[int(numbers[row, i]) for i, _ in one] for one in found] == [[k] * len(s) for k, s in enumerate(found)]
        orders = itertools.permutations([[token for _, token in one] for one in found][:6])
        if len(found) <= 6:
            assert any(joined(order) == ordinary(permuted[row, :n]) for order in orders)
        text, made = ordinary(before), ordinary(rotated[row, :n])
        assert not text or any(text[i:] + text[:i] == made for i in range(len(text)))


def test_orders_and_rotations_are_equally_likely():
    n = 12_000
    row = jnp.array([7, 4, 8, 9, 5, 10, 11])  # three sentences, the last one without an end
    tokens, valid = jnp.tile(row, (n, 1)), jnp.ones((n, 7), bool)
    permuted = views.permute_sentences(keys(0, n), tokens, valid, ends=ENDS)
    counts = collections.Counter(map(tuple, np.asarray(permuted).tolist()))
    assert len(counts) == 6 and max(abs(c - n / 6) for c in counts.values()) < 5 * math.sqrt(n * 5 / 36)
    counts = np.bincount(np.asarray(views.rotate_text(keys(1, n), tokens, valid))[:, 0], minlength=12)[row]
    assert np.abs(counts - n / 7).max() < 5 * math.sqrt(n * 6 / 49)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_deleted_and_infilled_texts_by_loops(seed):
    """Tokens that stay have their order, the number of hidden ones is exact, special tokens are never hidden."""
    tokens, valid = texts(seed)
    deleted = views.delete_tokens(keys(seed, 4), tokens, valid, rate=0.3, **OPTIONS)
    infilled = views.infill_spans(keys(seed, 4), tokens, valid, mask_id=MASK, **OPTIONS)
    for row in range(4):
        before = np.asarray(tokens[row])[np.asarray(valid[row])]
        n = len(ordinary(before))
        for (made, kept), hidden in ((deleted, None), (infilled, math.floor(0.3 * n + 0.5))):
            assert not np.asarray(made[row])[~np.asarray(kept[row])].any()
            after = np.asarray(made[row])[np.asarray(kept[row])].tolist()
            assert specials(after) == specials(before)
            rest = iter(before.tolist())
            assert all(token in rest for token in after if token != MASK)  # a subsequence
            missing = n - len(ordinary(after))
            assert missing in (math.floor(0.3 * n), math.ceil(0.3 * n)) if hidden is None else missing == hidden
            if hidden is None:
                assert MASK not in after


def test_rates_of_deletion_are_equal_at_all_places():
    n = 20_000
    tokens = jnp.tile(jnp.arange(10, 17), (n, 1)).at[:, 2].set(3)
    made, kept = views.delete_tokens(keys(0, n), tokens, jnp.ones((n, 7), bool), rate=0.4, **OPTIONS)
    counts = np.bincount(np.asarray(made)[np.asarray(kept)], minlength=17)
    assert counts[3] == n
    left = counts[[10, 11, 13, 14, 15, 16]] / n
    assert np.abs(left - 0.6).max() < 5 * math.sqrt(0.24 / n)


def drawn(rng, hidden, mean):
    """Lengths of spans until they sum to `hidden`, the last one cut."""
    out = []
    while sum(out) < hidden:
        out.append(min(int(rng.poisson(mean)), hidden - sum(out)))
    return out


@pytest.mark.parametrize("mean", [0.7, 3.0])
def test_lengths_and_places_of_infilled_spans(mean):
    """Tokens are all different, so that the gap at a mask is the length of its span."""
    n, length = 8_000, 20
    tokens = jnp.tile(jnp.arange(10, 10 + length), (n, 1))
    fill = functools.partial(views.infill_spans, mask_id=MASK, rate=0.4, mean_span=mean)
    made, kept = jax.jit(fill)(keys(0, n), tokens, jnp.ones((n, length), bool))
    assert made.shape[1] == views.infilled_length(length, 0.4, mean) > length
    assert views.infilled_length(128, 0.3, 3.0) == 128
    rng = np.random.default_rng(0)
    wanted, hidden = [drawn(rng, 8, mean) for _ in range(n)], 8
    counts = np.asarray(kept).sum(1) - (length - hidden)  # numbers of masks
    assert abs(counts.mean() - np.mean([len(one) for one in wanted])) < 5 * counts.std() * math.sqrt(2 / n)
    first = collections.Counter()  # spans of texts that begin with one mask
    for row, ok in zip(np.asarray(made), np.asarray(kept)):
        row = row[ok]
        assert sorted(set(row) - {MASK}) == [x for x in row if x != MASK] and (row == MASK).sum() == len(row) - 12
        if len(row) > 1 and row[1] != MASK and row[0] == MASK:
            first[int(row[1]) - 10] += 1
    total = sum(first.values())
    share = sum(len(one) / (len(one) + 12) * 12 / (len(one) + 11) for one in wanted) / n  # one mask, then a token
    assert abs(total / n - share) < 5 * math.sqrt(share / n)
    # The lengths are exchangeable except for the cut of the last one, so that the first has the weights of its row.
    expected = collections.Counter()
    for one in wanted:
        weight = 12 / (len(one) + 12) / (len(one) + 11) * len(one)
        expected[one[0]] += weight
    for size in range(6):
        assert abs(first[size] - expected[size]) < 6 * math.sqrt(expected[size] + 1), size


def rouge_f1(sentence, rest):
    """ROUGE-1 F1 from its definition."""
    left, right = collections.Counter(sentence), collections.Counter(rest)
    matches = sum(min(count, right[word]) for word, count in left.items())
    if not matches:
        return 0.0
    precision, recall = matches / len(sentence), matches / len(rest)
    return 2 * precision * recall / (precision + recall)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["rouge", "lead", "random"]), st.sampled_from([0.3, 0.45]))
def test_gap_sentences_by_loops(seed, choice, rate):
    tokens, valid = texts(seed)
    scores = np.asarray(
        views.rouge_scores(
            tokens,
            views.sentence_numbers(tokens, valid & ~jnp.isin(tokens, jnp.array(SPECIAL)), ENDS),
            valid & ~jnp.isin(tokens, jnp.array(SPECIAL)),
        )
    )
    gap = functools.partial(views.gap_sentences, ends=ENDS, mask_id=MASK, end_id=END, rate=rate, choice=choice)
    made = gap(keys(seed, 4), tokens, valid, **OPTIONS)
    copied = gap(keys(seed, 4), tokens, valid, unmasked=1 - 1e-9, **OPTIONS)
    for row in range(4):
        before = np.asarray(tokens[row])[np.asarray(valid[row])]
        found = sentences(before)
        read = np.asarray(made.tokens[row])[np.asarray(made.valid[row])].tolist()
        written = np.asarray(made.target[row])[np.asarray(made.counted[row])].tolist()
        words = [[token for _, token in one] for one in found]
        wanted = [rouge_f1(one, joined(words[:i] + words[i + 1 :])) for i, one in enumerate(words)]
        np.testing.assert_allclose(scores[row, : len(found)], wanted, rtol=1e-6)
        if len(found) < 2:
            assert read == before.tolist() and written == []
            continue
        number = min(max(math.floor(rate * len(found) + 0.5), 1), len(found) - 1)
        order = {"rouge": sorted(range(len(found)), key=lambda i: (-round(wanted[i], 9), i)), "lead": range(len(found))}
        sets = (
            [sorted(order[choice][:number])]
            if choice != "random"
            else map(list, itertools.combinations(range(len(found)), number))
        )
        results = []
        for chosen in sets:
            target = [*joined(words[i] for i in chosen), END]
            places = {i: k for k, one in enumerate(found) for i, _ in one if k in chosen}
            masked = [
                MASK if i in places else int(token)
                for i, token in enumerate(before)
                if i not in places or found[places[i]][0][0] == i
            ]
            results.append((masked, target))
        assert (read, written) in results
        same = np.asarray(copied.tokens[row])[np.asarray(copied.valid[row])].tolist()
        assert same == before.tolist() and (copied.target[row] == made.target[row]).all()


def test_random_gaps_and_unmasked_sentences():
    """Two of five sentences are gaps, equally likely; a fifth of the gaps stays in the input."""
    n = 20_000
    tokens = jnp.tile(jnp.array([10, 4, 11, 4, 12, 4, 13, 4, 14, 4]), (n, 1))
    gap = functools.partial(views.gap_sentences, ends=ENDS, mask_id=MASK, end_id=END, rate=0.45, choice="random")
    made = jax.jit(functools.partial(gap, unmasked=0.2))(keys(0, n), tokens, jnp.ones((n, 10), bool))
    written = np.bincount(np.asarray(made.target)[np.asarray(made.counted)], minlength=15)[10:]
    assert np.abs(written / n - 0.4).max() < 5 * math.sqrt(0.24 / n)
    masks = (np.asarray(made.tokens) == MASK).sum(1)
    shares = np.bincount(masks, minlength=3) / n
    np.testing.assert_allclose(shares, [0.04, 0.32, 0.64], atol=5 * math.sqrt(0.25 / n))
    short = gap(keys(0, 4), tokens[:4], jnp.ones((4, 10), bool), longest=3)
    assert short.target.shape == (4, 3) and short.counted.all() and END not in np.asarray(short.target)


def test_mixtures_of_denoisers():
    """Each row is that of its own denoiser; one span at the end, or anywhere, all places equally likely."""
    n, length = 12_000, 8
    tokens, full = jnp.tile(jnp.arange(1, length + 1), (n, 1)), jnp.full(n, length)
    ways = [views.Denoiser(0.25), views.Denoiser(0.25, ends_hidden=False), views.Denoiser(0.5, 2.0)]
    choice = jnp.arange(n) % 3
    mixed = functools.partial(views.mixed_span_corrupt, denoisers=ways, sentinel=99)
    made = jax.jit(mixed)(keys(0, n), tokens, full, choice)
    alone = views.span_corrupt(keys(0, n), tokens, full, sentinel=99, rate=0.5, mean_span=2.0)
    for name in ("tokens", "valid", "target", "counted"):
        ours, own = (np.asarray(getattr(x, name))[2::3] for x in (made, alone))
        assert (ours[:, : own.shape[1]] == own).all() and not ours[:, own.shape[1] :].any()
    rows = np.asarray(made.tokens)
    assert (rows[::3, :7] == [1, 2, 3, 4, 5, 6, 99]).all()
    assert (np.asarray(made.target)[::3, :4] == [99, 7, 8, 98]).all()
    starts = np.argmax(rows[1::3] == 99, 1)
    counts = np.bincount(starts, minlength=7)
    assert counts[0] == 0 and len(counts) == 7  # a kept part comes first
    assert np.abs(counts[1:] - n / 18).max() < 5 * math.sqrt(n / 3 * 5 / 36)
