"""Span corruption: inputs and targets restore the text; counts of spans; uniform cuts."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ssljax.views import (
    Denoising,
    denoising_lengths,
    example_keys,
    joined_texts,
    prefix_lengths,
    prefix_sizes,
    span_corrupt,
    span_counts,
    split_texts,
)

SENTINEL = 999


def merged(inputs, target):
    """Returns the text that inputs and target stand for, and the number of hidden spans."""
    spans, current = {}, None
    for token in target:
        if token > 900:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    out = []
    for token in inputs:
        out += spans[token] if token > 900 else [token]
    return out, len(spans) - 1


@settings(max_examples=6, deadline=None)  # each example compiles
@given(
    st.integers(1, 40), st.sampled_from([0.15, 0.3, 0.5]), st.sampled_from([1.0, 2.0, 3.0, 5.5]), st.integers(0, 10**6)
)
def test_inputs_and_targets_restore_the_text(length, rate, mean_span, seed):
    rng = np.random.default_rng(seed)
    lengths = np.array([length, rng.integers(0, length + 1), rng.integers(0, length + 1)])
    tokens = rng.integers(1, 900, (3, length))
    corrupt = jax.jit(functools.partial(span_corrupt, sentinel=SENTINEL, rate=rate, mean_span=mean_span))
    made = jax.tree.map(
        np.asarray, corrupt(example_keys(jax.random.key(seed), 3), jnp.asarray(tokens), jnp.asarray(lengths))
    )
    assert (made.tokens.shape[1], made.target.shape[1]) == denoising_lengths(length, rate, mean_span)
    for row, n in enumerate(lengths):
        inputs, target = made.tokens[row][made.valid[row]], made.target[row][made.counted[row]]
        hidden, spans = span_counts(n, rate, mean_span)
        if n < 2:
            assert not hidden and list(inputs) == list(tokens[row, :n]) and not len(target)
            continue
        text, found = merged(inputs, target)
        assert text == list(tokens[row, :n]) and found == spans
        assert len(inputs) == n - hidden + spans and len(target) == hidden + spans + 1
        marks = [t for t in inputs if t > 900]
        assert marks == [SENTINEL - i for i in range(spans)] == [t for t in target if t > 900][:-1]
        assert inputs[0] < 900  # a kept part comes first


def test_span_counts_of_the_paper():
    assert [int(x) for x in span_counts(512, 0.15, 3.0)] == [77, 26]


def test_all_cuts_are_equally_likely():
    """8 tokens, 4 of them hidden in 2 spans: 3 cuts of the hidden tokens times 3 cuts of the kept tokens."""
    n = 18_000
    tokens = jnp.tile(jnp.arange(1, 9), (n, 1))
    made = jax.jit(lambda keys: span_corrupt(keys, tokens, jnp.full(n, 8), sentinel=SENTINEL, rate=0.5, mean_span=2.0))
    counts = collections.Counter(map(tuple, np.asarray(made(example_keys(jax.random.key(0), n)).tokens)))
    assert len(counts) == 9
    # Each cut is expected 2,000 times, with a standard deviation of 42.
    assert max(abs(count - n / 9) for count in counts.values()) < 5 * 42


def test_lengths_of_the_paper():
    """Raffel et al. 2020: 512 input tokens, of which one ends the text, come from 568 and have 114 targets."""
    assert denoising_lengths(568, 0.15, 3.0) == (511, 114) and denoising_lengths(569, 0.15, 3.0)[0] == 512


def test_inputs_and_targets_in_a_row():
    """Without padding between them; the last target is predicted, and not read."""
    rng = np.random.default_rng(0)
    read, written = np.array([4, 0, 3, 1]), np.array([3, 2, 0, 1])
    made = Denoising(rng.integers(1, 90, (4, 4)), np.arange(4) < read[:, None], *(2 * [None]))
    made = made._replace(target=rng.integers(1, 90, (4, 3)), counted=np.arange(3) < written[:, None])
    texts, kept, lengths = jax.tree.map(np.asarray, jax.jit(joined_texts)(*made))
    assert texts.shape == (4, 6) and lengths.tolist() == read.tolist()
    for row in range(4):
        wanted = [*made.tokens[row][: read[row]], *made.target[row][: min(written[row], 2)]]
        assert texts[row].tolist() == wanted + [0] * (6 - len(wanted))
        assert kept[row].tolist() == [i < len(wanted) for i in range(6)]


def test_the_two_parts_of_a_text():
    tokens, lengths, prefix = np.arange(1, 25).reshape(4, 6), np.array([6, 4, 1, 2]), np.array([2, 3, 0, 1])
    made = jax.tree.map(np.asarray, jax.jit(split_texts, static_argnums=3)(tokens, lengths, prefix, (4, 5)))
    assert made.tokens.shape == (4, 4) and made.target.shape == (4, 5)
    for row, (n, cut) in enumerate(zip(lengths, prefix)):
        assert made.tokens[row][made.valid[row]].tolist() == tokens[row, :cut].tolist()
        assert made.target[row][made.counted[row]].tolist() == tokens[row, cut : n if cut else 0].tolist()
        assert made.valid[row].tolist() == [i < cut for i in range(4)]


def test_rows_have_room_for_every_cut():
    """The sizes are the largest of all lengths of texts, and no larger."""
    for length in (2, 3, 10, 48, 513):
        texts = np.arange(2, length + 1)
        for share in (0.05, 0.25, 0.3, 0.5, 0.9, None):
            if share is None:
                assert prefix_sizes(length) == (length - 1, length - 1)
                continue
            cuts = np.asarray(prefix_lengths(jnp.zeros((len(texts), 1)), jnp.asarray(texts), share))
            sizes = prefix_sizes(length, share)
            exact = cuts.max(), (texts - cuts).max()
            assert all(0 <= size - own <= 1 for size, own in zip(sizes, exact))
            assert length != 48 or sizes == exact
