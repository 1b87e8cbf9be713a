"""The order of examples: permutations, epochs, mixtures, slices of processes, slices of splits."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ssljax.base.errors import UserError
from ssljax.data.order import VERSION, BatchRanges, Shuffle, mix, permutation, subset
from ssljax.data.splits import parse_split


def test_permutations_are_valid_and_depend_on_every_key():
    orders = {key: permutation(1000, *key) for key in [(0, 0), (1, 0), (0, 1), (0, 0, 1), (-1, 0)]}
    for order in orders.values():
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    drawn = [tuple(order) for order in orders.values()]
    assert len(set(drawn)) == len(drawn)
    np.testing.assert_array_equal(permutation(1000, 0, 0), orders[0, 0])


def test_permutations_are_stable_over_versions():
    """These numbers never change: a run that is resumed years later must have the same order."""
    np.testing.assert_array_equal(permutation(8, 3, 2), [2, 4, 1, 3, 6, 5, 0, 7])


def test_permutations_are_uniform():
    """Each of 4 rows is at each of 4 positions in a quarter of 4000 epochs, within 5 standard deviations."""
    orders = np.stack([permutation(4, 7, epoch) for epoch in range(4000)])
    for position in range(4):
        counts = np.bincount(orders[:, position], minlength=4)
        assert np.abs(counts - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


EPOCHS = 6


@hypothesis.given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 300))
def test_every_epoch_has_every_row_once_and_no_batch_has_a_row_twice(size, batch, start):
    def shuffle():
        return Shuffle(size, 5, batches=BatchRanges(batch))

    numbers = np.arange(EPOCHS * size)
    forward = shuffle()
    batches = [forward(numbers[i : i + batch]) for i in range(0, len(numbers), batch)]
    rows = np.concatenate(batches)
    for epoch in range(EPOCHS):
        np.testing.assert_array_equal(np.sort(rows[epoch * size : (epoch + 1) * size]), np.arange(size))
    if batch <= size:
        assert all(len(set(b)) == len(b) for b in batches)
    # The rows of any step do not depend on the steps before it, or on how many processes load them.
    np.testing.assert_array_equal(shuffle()(numbers[start:]), rows[start:])
    backward = shuffle()
    for n in range(len(numbers) - 1, -1, -7):
        assert backward(numbers[n : n + 1]) == rows[n]


@hypothesis.given(
    st.lists(st.floats(0.05, 20), min_size=1, max_size=4), st.integers(1, 40), st.integers(1, 60), st.integers(0, 3)
)
def test_batches_of_mixtures_have_no_row_twice(weights, batch, size, source):
    weights = tuple(weights)
    source %= len(weights)
    ranges = BatchRanges(batch, weights, source)
    shuffle = Shuffle(size, 3, batches=ranges)
    for step in range(60):
        sources, numbers = mix(np.arange(step * batch, (step + 1) * batch), weights)
        own = numbers[sources == source]
        start, stop = ranges.first(step), ranges.first(step + 1)
        np.testing.assert_array_equal(own, np.arange(start, stop))
        if len(own):
            assert ranges.around(start) == ranges.around(stop - 1) == (start, stop)
        if len(own) <= size:
            assert len(set(shuffle(own))) == len(own)


def test_the_arrangement_at_borders_keeps_the_order_random():
    """Each of 10 rows is at each place of an epoch equally often, within 5 standard deviations, in 4000 orders."""
    shuffle = [Shuffle(10, seed, batches=BatchRanges(4))(np.arange(20)) for seed in range(4000)]
    counts = np.stack([np.bincount(place, minlength=10) for place in np.stack(shuffle).T])
    assert counts.shape == (20, 10) and np.abs(counts - 400).max() < 5 * np.sqrt(4000 * 0.1 * 0.9)


def test_orders_are_stable_over_versions():
    """These numbers never change without a new `VERSION`, which is written to data.json."""
    rows = Shuffle(7, 3, batches=BatchRanges(4))(np.arange(21))
    assert (VERSION, rows.tolist()) == (3, [6, 1, 5, 2, 4, 3, 0, 5, 3, 6, 4, 0, 2, 1, 4, 3, 2, 1, 6, 5, 0])


@hypothesis.given(st.lists(st.floats(0.05, 20), min_size=1, max_size=5), st.integers(0, 10**9))
def test_shares_of_a_mixture_are_exact(weights, start):
    count = 2000
    source, number = mix(np.arange(count), tuple(weights))
    shares = np.array(weights) / np.sum(weights)
    for k, share in enumerate(shares):
        taken = np.cumsum(source == k)
        assert np.abs(taken - share * np.arange(1, count + 1)).max() <= len(weights)
        np.testing.assert_array_equal(number[source == k], np.arange(taken[-1]))
    late_source, late_number = mix(np.arange(start, start + 100), tuple(weights))
    for k in range(len(weights)):
        np.testing.assert_array_equal(np.diff(late_number[late_source == k]), 1)


def test_subset():
    np.testing.assert_array_equal(subset(5, None, 0), np.arange(5))
    np.testing.assert_array_equal(subset(5, 9, 0), np.arange(5))
    chosen = subset(1000, 100, 3)
    assert len(set(chosen)) == 100 and (np.diff(chosen) > 0).all()
    assert set(chosen) != set(subset(1000, 100, 4))
    assert 300 < chosen.mean() < 700


@pytest.mark.parametrize(
    "text, expected",
    [
        ("train", range(10)),
        ("train[:3]", range(3)),
        ("train[8:]", range(8, 10)),
        ("train[-2:]", range(8, 10)),
        ("train[20%:]", range(2, 10)),
        ("train[:25%]", range(2)),
        ("train[25%:]", range(2, 10)),
        ("train[-20%:]", range(8, 10)),
        ("train[:-20%]", range(8)),
        ("train[-5%:]", range(0)),
        ("train[:-5%]", range(10)),
        ("train[2:50%]", range(2, 5)),
        ("train[:99]", range(10)),
    ],
)
def test_split_slices(text, expected):
    split = parse_split(text)
    assert split.name == "train"
    assert list(range(10)[split.bounds(10)]) == list(expected)


@pytest.mark.parametrize("text", ["", "train[", "train[1]", "train[a:]", "train[:10", "tr ain", "train[1:2:3]"])
def test_bad_split(text):
    with pytest.raises(UserError, match=r"data\.split: got .* must be"):
        parse_split(text)
