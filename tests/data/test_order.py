"""The order of examples: permutations, epochs, mixtures, slices of processes, slices of splits."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ssljax.base.errors import UserError
from ssljax.data.order import Shuffle, mix, permutation, process_slice, subset
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


@hypothesis.given(st.integers(1, 50), st.integers(1, 30), st.integers(0, 40))
def test_every_epoch_has_every_row_once(size, batch, start):
    shuffle = Shuffle(size, seed=5)
    numbers = np.arange(3 * size)
    rows = np.concatenate([shuffle(numbers[i : i + batch]) for i in range(0, len(numbers), batch)])
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(rows[epoch * size : (epoch + 1) * size]), np.arange(size))
    # The rows of any step do not depend on the steps before it.
    np.testing.assert_array_equal(Shuffle(size, seed=5)(numbers[start:]), rows[start:])


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


def test_process_slices_tile_the_batch():
    rows = np.arange(24)
    np.testing.assert_array_equal(np.concatenate([rows[process_slice(24, p, 8)] for p in range(8)]), rows)
    with pytest.raises(UserError, match=r"batch_size: got 24, must be a multiple .* \(5\)"):
        process_slice(24, 0, 5)


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
