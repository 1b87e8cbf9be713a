"""The order of examples: permutations, epochs, mixtures, slices of processes, slices of splits."""

import itertools
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ssljax.base.errors import UserError
from ssljax.data.order import VERSION, BatchRanges, Permutation, Shuffle, _hash, mix, permutation, subset
from ssljax.data.splits import parse_split


def whole(size, *key, **options):
    """The rows of an epoch in their order."""
    return permutation(size, *key, **options)(np.arange(size))


def test_permutations_are_valid_and_depend_on_every_key():
    orders = {key: whole(1000, *key) for key in [(0, 0), (1, 0), (0, 1), (0, 0, 1), (-1, 0)]}
    for order in orders.values():
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    drawn = [tuple(order) for order in orders.values()]
    assert len(set(drawn)) == len(drawn)
    np.testing.assert_array_equal(whole(1000, 0, 0), orders[0, 0])


def test_permutations_of_all_small_sizes_are_bijections():
    for size in range(1, 2001):
        np.testing.assert_array_equal(np.sort(whole(size, 3, 1)), np.arange(size), err_msg=str(size))


def inverted(permuted, rows):
    """The positions of rows: the rounds in the opposite order, with subtraction, until a position is in the range."""
    a, b = permuted.sides

    def back(value):
        halves = list(divmod(value, b))
        for number, key in reversed(list(enumerate(permuted.keys))):
            changed = number % 2
            word = np.array([(halves[1 - changed] + int(key)) % 2**64], np.uint64)
            added = (int(_hash(word)[0]) >> 32) * permuted.sides[changed] >> 32
            halves[changed] = (halves[changed] - added) % permuted.sides[changed]
        assert 0 <= halves[0] < a
        return halves[0] * b + halves[1]

    def position(row):
        value = back(row)
        while value >= permuted.size:
            value = back(value)
        return value

    return np.array([position(int(row)) for row in rows])


@hypothesis.given(st.integers(2001, 2**50), st.integers(0, 2**63), st.data())
def test_permutations_of_large_sizes_have_an_inverse(size, seed, data):
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    permuted = permutation(size, seed, 4)
    rows = permuted(positions)
    assert rows.min() >= 0 and rows.max() < size
    np.testing.assert_array_equal(inverted(permuted, rows), positions)


def test_permutations_are_stable_over_versions():
    """These numbers never change: a run that is resumed years later must have the same order."""
    np.testing.assert_array_equal(whole(8, 3, 2), [1, 7, 3, 4, 6, 0, 5, 2])
    np.testing.assert_array_equal(permutation(10**9, 3, 2)(np.arange(3)), [426351722, 309757542, 106264016])


def deviation(counts, expected):
    """The chi-square statistic of counts that all have the same expectation, in standard deviations from its mean."""
    degrees = counts.size - 1
    return (np.square(counts - expected).sum() / expected - degrees) / np.sqrt(2 * degrees)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_all_permutations_of_few_rows_are_equally_likely(size):
    orders = [tuple(whole(size, 5, epoch)) for epoch in range(6000)]
    counts = np.array([orders.count(p) for p in itertools.permutations(range(size))])
    assert counts.sum() == len(orders)
    assert size == 1 or abs(deviation(counts, len(orders) / len(counts))) < 4


def pairs(a, b, size, cells=20):
    """Counts of pairs of rows in the cells of a grid; a permutation gives each cell the same number, about."""
    return np.bincount((a * cells // size) * cells + b * cells // size, minlength=cells**2)


def uniformity(draw, size, count, epochs):
    """Deviations of the counts of (position, row), of neighbours, of their distance, and of two successive epochs.

    Args:
        draw: (epoch, positions) -> rows.
        size: number of rows.
        count: number of positions, spread over the epoch, with the position after each.
        epochs: number of epochs.
    """
    positions = np.linspace(0, size - 2, count).astype(np.int64)
    found = [np.zeros(400) for _ in range(4)]
    before = None
    for epoch in range(epochs):
        rows, after = draw(epoch, positions), draw(epoch, positions + 1)
        found[0] += pairs(positions, rows, size)
        found[1] += pairs(rows, after, size)
        found[2] += np.bincount((after - rows) % size * 400 // size, minlength=400)
        if before is not None:
            found[3] += pairs(before, rows, size)
        before = rows
    return [deviation(counts, counts.sum() / counts.size) for counts in found]


@pytest.mark.parametrize("vary", ["epoch", "seed", "stream"])
@pytest.mark.parametrize(("size", "count", "epochs"), [(10**9, 100_000, 10), (2**31 + 11, 1000, 1000)])
def test_permutations_are_uniform_in_samples(size, count, epochs, vary):
    """Deviations of independent draws are within 5; so few positions of an epoch are as good as independent."""
    key = {"epoch": lambda n: (7, n), "seed": lambda n: (n, 7), "stream": lambda n: (7, 7, n)}[vary]
    found = uniformity(lambda n, positions: permutation(size, *key(n))(positions), size, count, epochs)
    assert np.abs(found).max() < 5, found


def test_permutations_are_as_uniform_as_those_of_numpy():
    """Whole epochs of 4,000 rows: each row is drawn once, so counts vary less than those of independent draws."""
    size, epochs = 4000, 250
    shuffled = [np.random.default_rng(epoch).permutation(size) for epoch in range(epochs)]
    own = [whole(size, 1, epoch) for epoch in range(epochs)]
    found, expected = (
        np.array(uniformity(lambda n, positions, o=o: o[n][positions], size, size - 1, epochs)) for o in (own, shuffled)
    )
    assert np.abs(found - expected).max() < 6, (found, expected)


def test_a_network_of_few_rounds_is_not_uniform():
    """The tests above can fail."""
    draw = lambda n, positions: Permutation(10**9, np.arange(2, dtype=np.uint64) + np.uint64(n))(positions)  # noqa: E731
    assert max(uniformity(draw, 10**9, 100_000, 10)) > 100


def test_small_and_large_epochs_have_one_definition(monkeypatch):
    """Orders of small epochs are stored, those of large ones are not."""
    stored = Shuffle(500, 3, batches=BatchRanges(64))(np.arange(2000))
    monkeypatch.setattr("ssljax.data.order._STORED", 0)
    np.testing.assert_array_equal(Shuffle(500, 3, batches=BatchRanges(64))(np.arange(2000)), stored)


def test_an_order_of_a_billion_rows_needs_no_memory():
    """A stored permutation of int32 has 4 GB. Batches at a border of two epochs are computed as well."""
    size, rows = 10**9, 8192
    tracemalloc.start()
    shuffle = Shuffle(size, 0, batches=BatchRanges(rows))
    border = size // rows
    drawn = [shuffle(np.arange(step * rows, (step + 1) * rows)) for step in (0, border - 1, border, border + 1)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(len(set(batch)) == rows for batch in drawn)
    assert peak < 8 << 20


def test_a_permutation_does_not_depend_on_the_part_that_is_computed():
    """Processes compute their own rows only."""
    order = whole(5000, 2, 3)
    parts = np.split(np.random.default_rng(0).permutation(5000), [7, 1000, 4000])
    for part in parts:
        np.testing.assert_array_equal(permutation(5000, 2, 3)(part), order[part])


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
    """Each of 10 rows is at each place of an epoch equally often, within 5 standard deviations, in 1500 orders."""
    shuffle = [Shuffle(10, seed, batches=BatchRanges(4))(np.arange(20)) for seed in range(1500)]
    counts = np.stack([np.bincount(place, minlength=10) for place in np.stack(shuffle).T])
    assert counts.shape == (20, 10) and np.abs(counts - 150).max() < 5 * np.sqrt(1500 * 0.1 * 0.9)


def arranged(size, seed, batch, epochs):
    """The definition of `Shuffle` on whole orders: rows that the batch across the border had before come later."""
    made = []
    for epoch in range(epochs):
        order, border = whole(size, seed, epoch), epoch * size
        before = border % batch
        if epoch and before:
            used = np.isin(order, made[-1][size - before :])
            after = batch - before
            # The rows of the next batch across a border stay in their places, if there are enough others.
            end = (border + size) % batch
            movable = size - end if size - before - end >= after else size
            chosen = np.flatnonzero(~used[:movable])[:after]
            order = np.concatenate([order[chosen], np.delete(order, chosen)])
        made.append(order)
    return np.concatenate(made)


@hypothesis.given(st.integers(2, 60), st.integers(0, 100), st.data())
def test_the_arrangement_at_borders_is_that_of_whole_orders(size, seed, data):
    batch = data.draw(st.integers(1, size))
    numbers = np.arange(5 * size)
    got = Shuffle(size, seed, batches=BatchRanges(batch))(numbers)
    np.testing.assert_array_equal(got, arranged(size, seed, batch, 5))


def test_orders_are_stable_over_versions():
    """These numbers never change without a new `VERSION`, which is written to data.json."""
    rows = Shuffle(7, 3, batches=BatchRanges(4))(np.arange(21))
    assert (VERSION, rows.tolist()) == (4, [2, 1, 4, 6, 5, 3, 0, 4, 6, 0, 5, 1, 3, 2, 1, 4, 2, 3, 6, 0, 5])


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
