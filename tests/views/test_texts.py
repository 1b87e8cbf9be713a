"""Whole words, span boundaries and sentence pairs: definitions in plain Python, and rates over many rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import views

ROWS, LENGTH, MASK, SPECIAL = 3000, 60, 4, (0, 1, 2, 3)
RATE = 0.15


def keys_of(rows, seed=0):
    return views.example_keys(jax.random.key(seed), jnp.arange(rows))


@functools.cache
def rows():
    """Tokens, those that may be chosen, starts of words, and segments; padding at the ends, special tokens inside."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, LENGTH + 1, ROWS)
    tokens = rng.integers(1, 40, (ROWS, LENGTH))
    place = np.arange(LENGTH)
    segments = np.where(place < lengths[:, None], 1 + (place >= lengths[:, None] // 2), 0)
    tokens = np.where(segments > 0, tokens, 0)
    begins = tokens % 3 == 0  # a property of a token, a third of them
    return tokens.astype(np.int32), (segments > 0), begins, segments.astype(np.int32)


def words_by_hand(tokens, valid, begins, segments):
    """Lists of positions of each word with candidates."""
    found, before = [], False
    for i, token in enumerate(tokens):
        candidate = valid[i] and token not in (MASK, *SPECIAL)
        if candidate and before and not begins[i] and segments[i] == segments[i - 1]:
            found[-1].append(i)
        elif candidate:
            found.append([i])
        before = candidate
    return found


@functools.cache
def corrupted(spans=None):
    tokens, valid, begins, segments = rows()
    corrupt = functools.partial(views.mlm_corrupt, vocab_size=40, mask_id=MASK, special_ids=SPECIAL, rate=RATE)
    made = jax.jit(functools.partial(corrupt, spans=spans))(
        keys_of(ROWS), tokens, valid, word_starts=begins, segment_ids=segments
    )
    return np.asarray(made.tokens), np.asarray(made.unit)


def test_words_are_chosen_whole_up_to_the_budget():
    tokens, valid, begins, segments = rows()
    inputs, unit = corrupted()
    assert (inputs == tokens)[unit == 0].all()
    shares, sizes_chosen, sizes = [], [], []
    for i in range(500):
        words = words_by_hand(tokens[i], valid[i], begins[i], segments[i])
        numbers = [set(unit[i][word].tolist()) for word in words]
        assert all(len(number) == 1 for number in numbers)
        taken = [len(word) for word, number in zip(words, numbers) if number != {0}]
        assert sorted(n for n in map(min, numbers) if n) == list(range(1, len(taken) + 1))
        assert sum(taken) == (unit[i] > 0).sum()
        n = sum(map(len, words))
        left = np.ceil(RATE * n) - sum(taken)
        assert left >= 0
        # No further word would have fitted into the number of this row, which is floor(rate n) or one more.
        others = [len(word) for word, number in zip(words, numbers) if number == {0}]
        assert min(others) > left - 1
        shares.append(sum(taken) / n)
        sizes_chosen += taken
        sizes += map(len, words)
    assert 0.14 < np.mean(shares) <= 0.151
    assert np.mean(sizes_chosen) > 0.7 * np.mean(sizes)  # long words too
    chosen = unit > 0
    assert (inputs == MASK)[chosen].mean() == pytest.approx(0.8, abs=0.02)
    assert (inputs == tokens)[chosen].mean() == pytest.approx(0.1 + 0.1 / 35, abs=0.015)


def test_words_of_one_size_are_equally_likely():
    count = 4000
    words = jnp.broadcast_to(jnp.arange(24) // 2, (count, 24))
    candidate = jnp.ones((count, 24), bool)
    unit = np.asarray(jax.jit(views.choose_words)(keys_of(count), candidate, jnp.full(count, 5), words))
    assert ((unit > 0).sum(1) == 4).all()  # two words of two tokens; a third does not fit
    share = (unit[:, ::2] > 0).mean(0)
    np.testing.assert_allclose(share, 2 / 12, atol=5 * np.sqrt(2 / 12 / count))


def test_word_numbers_by_their_definition():
    tokens, valid, begins, segments = rows()
    candidate = valid & ~np.isin(tokens, (MASK, *SPECIAL))
    found = np.asarray(views.word_numbers(jnp.asarray(begins), jnp.asarray(candidate), jnp.asarray(segments)))
    assert (found[:, 0] == 0).all() and np.isin(np.diff(found, axis=1), (0, 1)).all()
    for i in range(200):
        words = words_by_hand(tokens[i], valid[i], begins[i], segments[i])
        assert [np.flatnonzero(found[i] == found[i, word[0]]).tolist() for word in words] == words


def test_spans_of_words_are_geometric_and_whole():
    """In rows of words of two tokens, the first span is uncut unless it exceeds the budget."""
    count, length, most = 2000, 160, 24
    words = jnp.broadcast_to(jnp.arange(length) // 2, (count, length))
    choose = functools.partial(views.choose_spans, most=most, p=0.2, longest=10)
    arguments = keys_of(count), jnp.ones((count, length), bool), jnp.full(count, most)
    unit = np.asarray(jax.jit(choose)(*arguments, words=words))
    assert ((unit > 0).sum(1) == most).all() and (unit[:, ::2] == unit[:, 1::2]).all()
    lengths = np.bincount((unit == 1).sum(1) // 2, minlength=11)[1:] / count
    expected = np.array([0.8**k for k in range(10)])
    expected /= expected.sum()
    np.testing.assert_allclose(lengths, expected, atol=4 * np.sqrt(expected.max() / count))
    assert lengths @ range(1, 11) == pytest.approx(3.8, abs=0.2)
    odd = np.asarray(jax.jit(choose)(*arguments[:2], jnp.full(count, 23), words=words))
    assert ((odd > 0).sum(1) == 22).all()  # whole words only


def test_spans_of_words_in_ragged_rows():
    tokens, valid, begins, segments = rows()
    inputs, unit = corrupted((0.2, 10))
    assert (inputs == tokens)[unit == 0].all()
    for i in range(300):
        words = words_by_hand(tokens[i], valid[i], begins[i], segments[i])
        assert all(len(set(unit[i][word].tolist())) == 1 for word in words)
        for number in range(1, unit[i].max() + 1):
            at = np.flatnonzero(unit[i] == number)
            assert (np.diff(at) == 1).all() and len(set(segments[i][at])) == 1
            assert len({inputs[i][j] == MASK for j in at}) == 1  # one fate
    share = (unit > 0).sum() / (valid & ~np.isin(tokens, (MASK, *SPECIAL))).sum()
    assert 0.13 < share <= 0.151


def test_boundaries_by_their_definition():
    rng = np.random.default_rng(1)
    spans, segments = np.zeros((300, 20), np.int32), np.ones((300, 20), np.int32)
    for row, of in zip(spans, segments):
        of[rng.integers(5, 20) :] = 2
        for number, start in enumerate(rng.permutation(20)[:4], 1):
            stop = start + rng.integers(1, 4)
            if not row[start:stop].any() and len(set(of[start:stop])) == 1:
                row[start:stop] = number
    found = [np.asarray(x) for x in views.span_boundary(jnp.asarray(spans), jnp.asarray(segments))]
    inside = 0
    for i, (row, of) in enumerate(zip(spans, segments)):
        for number in set(row) - {0}:
            at = np.flatnonzero(row == number)
            left, right = at[0] - 1, at[-1] + 1
            whole = left >= 0 and right < 20 and of[left] == of[at[0]] == of[right]
            assert (found[3][i][at] == whole).all()
            inside += whole
            if whole:
                assert (found[0][i][at] == left).all() and (found[1][i][at] == right).all()
            assert found[2][i][at].tolist() == list(range(len(at)))
        assert not found[3][i][row == 0].any()
    assert inside > 300


@pytest.mark.parametrize(("kind", "first", "separator"), [("order", 1, 2), ("next", None, 2), ("next", None, None)])
def test_sentence_pairs_by_their_definition(kind, first, separator):
    count, length = 2000, 21
    tokens = np.arange(count * length).reshape(count, length).astype(np.int32) + 10
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random((count, 1)) < 0.3, tokens, np.where(rng.random(tokens.shape) < 0.4, -1, tokens))
    tokens[::50, 1:] = -1  # at most one token
    other = np.roll(tokens, 1, axis=0) if kind == "next" else None
    make = functools.partial(views.sentence_pairs, first_id=first, separator_id=separator, pad_id=7)
    pairs = jax.jit(make)(keys_of(count), tokens, other)
    row, types, segments, apart, whole = map(np.asarray, pairs)
    before, after = [first] * (first is not None), [separator] * (separator is not None)
    room = length - len(before) - 2 * len(after)
    assert apart.mean() == pytest.approx(0.5, abs=0.05) and 0.9 < whole.mean() < 0.99

    def halves(i):
        text = tokens[i][tokens[i] >= 0].tolist()[:room]
        half = len(text) // 2
        return text[:half], text[half : 2 * half]

    for i in range(count):
        a, b = halves(i)
        if apart[i] and kind == "order":
            a, b = b, a
        elif apart[i]:
            _, b = halves(i - 1)
        expected = [*before, *a, *after, *b, *after]
        rest = [0] * (length - len(expected))
        assert row[i].tolist() == [*expected, *([7] * len(rest))] and segments[i].tolist() == [1] * len(expected) + rest
        cut = len(before) + len(a) + len(after)
        assert types[i].tolist() == [0] * cut + [1] * (len(expected) - cut) + rest
        assert whole[i] == bool(a and b)
