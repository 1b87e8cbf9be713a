"""The order of examples as a pure function from the number of an example in the run to a row of the data."""

import bisect
import dataclasses
import math
from collections.abc import Callable

import numpy as np

VERSION = 4  # of the order; written to data.json, so that a run is not continued in another order
# Keys of permutations that are no epochs, which are counted from 0.
SUBSETS, SLICES = 2**63 - 1, 2**63 - 2

# Rows of an epoch whose order is computed at once and stored, since a call for each batch would cost more.
_STORED = 1 << 17

Order = Callable[[np.ndarray], np.ndarray]  # positions int64 [N] -> rows int64 [N]


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """Blocks of rows, of which a source reads each as a whole. The order of an epoch mixes a few blocks at a time.

    Attributes:
        starts: int64 [K + 1], the first row of each of K blocks, in increasing order, and the number of rows.
        mixed: number of blocks whose rows are mixed.
    """

    starts: np.ndarray
    mixed: int

    def of(self, rows: np.ndarray) -> "RowBlocks":
        """Returns the blocks of sorted rows, counted from 0 without gaps."""
        return RowBlocks(np.unique(np.searchsorted(rows, self.starts)), self.mixed)


class Permutation:
    """A permutation of range(size) that is computed, not stored: position -> row, for any number of positions.

    A Feistel network permutes the pairs (left, right) of range(a) x range(b), with a b slightly above `size` (Luby &
    Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom functions"; for any a and b: Black &
    Rogaway 2002, "Ciphers with Arbitrary Finite Domains", method 3). A round adds a keyed hash of one half to the other
    half. A position whose image is outside the range is mapped again until it is inside ("cycle walking", method 2).

    Args:
        size: number of rows.
        keys: uint64, one key for each round; `rounds(size)` of them.
    """

    def __init__(self, size: int, keys: np.ndarray):
        self.size, self.keys = size, keys
        first = math.isqrt(max(size - 1, 0)) + 1
        # An even side: an odd permutation exists among the rounds, so that all permutations can be reached.
        second = -(-size // first)
        self.sides = first, second + second % 2

    @staticmethod
    def rounds(size: int) -> int:
        """Returns the number of rounds: a small domain needs more of them to approach the uniform distribution."""
        return 10 if size > 1000 else 24

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Returns the rows, int64 [N], at positions int64 [N] in range(size)."""
        rows = self._mapped(positions.astype(np.uint64))
        while len(outside := np.flatnonzero(rows >= self.size)):
            rows[outside] = self._mapped(rows[outside])
        return rows.astype(np.int64)

    def _mapped(self, values: np.ndarray) -> np.ndarray:
        """Returns the images, uint64 [N], of values of range(a b)."""
        sides = np.array(self.sides, np.uint64)
        halves = list(np.divmod(values, sides[1]))
        for number, key in enumerate(self.keys):
            changed = number % 2
            # A multiple of the hash's upper 32 bits is uniform in range(side) up to side / 2^32.
            half = halves[changed] + ((_hash(halves[1 - changed] + key) >> _U32) * sides[changed] >> _U32)
            halves[changed] = np.where(half >= sides[changed], half - sides[changed], half)
        return halves[0] * sides[1] + halves[1]


_U32 = np.uint64(32)
# The shifts and factors of the finaliser of SplitMix64 (Steele, Lea, Flood 2014, after Stafford's mix 13).
_SHIFTS, _FACTORS = np.array([30, 27, 31], np.uint64), np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 1], np.uint64)


def _hash(words: np.ndarray) -> np.ndarray:
    """Returns a hash of each word, uint64 [N]."""
    for shift, factor in zip(_SHIFTS, _FACTORS):
        words = (words ^ (words >> shift)) * factor
    return words


class _BlockOrder:
    """The order of an epoch whose blocks are in random order, with the rows of a window of a few blocks mixed.

    Args:
        blocks: the blocks.
        keys: (number of a permutation, its size) -> its keys.
    """

    def __init__(self, blocks: RowBlocks, keys: Callable[[int, int], np.ndarray]):
        count = len(blocks.starts) - 1
        order = Permutation(count, keys(0, count))(np.arange(count))
        self.keys, self.first_rows = keys, blocks.starts[order]
        # Positions at which blocks start in the order, and at which windows start, both with the end.
        self.starts = np.concatenate([[0], np.cumsum(np.diff(blocks.starts)[order])])
        self.windows = np.append(self.starts[: -1 : blocks.mixed], self.starts[-1])

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        mixed = np.empty_like(positions)
        windows = np.searchsorted(self.windows, positions, side="right") - 1
        for window in np.unique(windows):
            selected, (start, stop) = windows == window, self.windows[window : window + 2]
            permuted = Permutation(stop - start, self.keys(1 + window, stop - start))
            mixed[selected] = start + permuted(positions[selected] - start)
        block = np.searchsorted(self.starts, mixed, side="right") - 1
        return self.first_rows[block] + mixed - self.starts[block]


def permutation(size: int, seed: int, epoch: int, stream: int = 0, blocks: RowBlocks | None = None) -> Order:
    """Returns the order of one epoch: a permutation of range(size) that is a function of (seed, epoch, stream).

    Its keys are raw Philox words (Salmon et al., 2011), whose stream NumPy guarantees for all versions.

    Args:
        size: number of rows.
        seed, epoch, stream: the key of the order.
        blocks: blocks of the rows: they are put into random order, and the rows of each `blocks.mixed` of them, one
            after another, are mixed. None: all rows are mixed.
    """

    def keys(number: int, size: int) -> np.ndarray:
        key = np.array([seed % 2**64, epoch], np.uint64)
        counter = np.array([0, 0, number, stream], np.uint64)
        return np.random.Philox(key=key, counter=counter).random_raw(Permutation.rounds(size))

    return Permutation(size, keys(0, size)) if blocks is None else _BlockOrder(blocks, keys)


@dataclasses.dataclass(frozen=True)
class BatchRanges:
    """The examples of one source of a mixture in each batch: a range of their numbers.

    Attributes:
        rows: rows of a batch, all sources together.
        weights: weights of the sources.
        source: index of the source.
    """

    rows: int
    weights: tuple[float, ...] = (1.0,)
    source: int = 0

    def first(self, step: int) -> int:
        """Returns the number of the first example of the source in the batch of `step`."""
        number, rest = step * self.rows, sum(self.weights)
        for weight in self.weights[: self.source]:
            number -= math.floor(number * (weight / rest))  # the formula of `mix`, which counts examples so
            rest -= weight
        last = self.source == len(self.weights) - 1
        return number if last else math.floor(number * (self.weights[self.source] / rest))

    def around(self, number: int) -> tuple[int, int]:
        """Returns the range [start, stop) of the batch that contains the example with this number."""
        share = self.rows * self.weights[self.source] / sum(self.weights)
        steps = range(2 + math.ceil((number + len(self.weights) + 1) / share))
        step = bisect.bisect_right(steps, number, key=self.first) - 1
        return self.first(step), self.first(step + 1)


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """The order of an epoch with other rows at its first positions.

    Attributes:
        order: the permutation.
        first: int64 [n], the rows at positions 0 to n - 1, which are the same in another order.
    """

    order: Order
    first: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        rows, early = np.empty(positions.shape, np.int64), positions < len(self.first)
        rows[early] = self.first[positions[early]]
        rows[~early] = self.order(positions[~early])
        return rows


class Shuffle:
    """Maps the number of an example to a row, with a new permutation in every epoch.

    A batch across the border of two epochs has no row twice, as long as it has at most `size` rows: the rows of the
    batch that the earlier epoch gave are moved behind the first rows of the later epoch.

    Args:
        size: number of rows.
        seed: seed of the order.
        stream: number of the order among those of one seed.
        batches: the numbers of the examples in each batch.
        blocks: the blocks in which rows are read; None: rows in any order are read fast.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        stream: int = 0,
        batches: BatchRanges = BatchRanges(1),
        blocks: RowBlocks | None = None,
    ):
        self.size, self.seed, self.stream, self.batches, self.blocks = size, seed, stream, batches, blocks
        self._orders: dict[int, _Epoch] = {}  # of the two latest epochs, since a batch may cross epochs

    def _order(self, epoch: int) -> "_Epoch":
        """Returns the order of an epoch.

        It depends on the order of the epoch before if that one did not keep its last rows in place. Such a chain is
        short: it needs less than two batches in an epoch, and ends where a batch ends with an epoch.
        """
        first = epoch
        while first not in self._orders and self._cut(first)[0] and not self._keeps_end(first - 1):
            first -= 1
        for e in range(first, epoch + 1):
            if e not in self._orders:
                order = self._arranged(e)
                kept = list(self._orders.items())[-1:]
                self._orders = dict([*kept, (e, order)])
        return self._orders[epoch]

    def _arranged(self, epoch: int) -> "_Epoch":
        """Returns the order of an epoch, arranged for the batch that crosses from the epoch before."""
        order = self._permutation(epoch)
        before, after = self._cut(epoch)
        if not before or not after:
            return _Epoch(order)
        earlier = self._orders.get(epoch - 1)
        if earlier is None:
            earlier = _Epoch(self._permutation(epoch - 1))
        used = earlier(np.arange(self.size - before, self.size))
        movable = self.size - self._cut(epoch + 1)[0] if self._keeps_end(epoch) else self.size
        # At most `before` of these rows are used, so the others fill the batch.
        rows = order(np.arange(min(before + after, movable)))
        free = ~np.isin(rows, used)
        chosen = np.flatnonzero(free)[:after]
        stop = chosen[-1] + 1
        passed = np.delete(rows[:stop], chosen)
        return _Epoch(order, np.concatenate([rows[chosen], passed]))

    def _permutation(self, epoch: int) -> Order:
        order = permutation(self.size, self.seed, epoch, self.stream, self.blocks)
        return order if self.size > _STORED else order(np.arange(self.size)).take

    def _cut(self, epoch: int) -> tuple[int, int]:
        """Returns the rows before and after the start of an epoch, of the batch that crosses it; 0, 0 without one."""
        border = epoch * self.size
        start, stop = self.batches.around(border)
        return (0, 0) if start == border or stop - start > self.size else (border - start, stop - border)

    def _keeps_end(self, epoch: int) -> bool:
        """Returns True if the rows of the next batch that crosses epochs are the last ones of the permutation."""
        before, after = self._cut(epoch)
        end = self._cut(epoch + 1)[0]
        # At least this many rows, neither used before nor at the end, are left for the start.
        return not before or self.size - before - end >= after

    def __call__(self, n: np.ndarray) -> np.ndarray:
        """Returns the rows, int64 [N], of the examples with numbers n, int64 [N]."""
        epochs, offsets = np.divmod(n, self.size)
        rows = np.empty(n.shape, np.int64)
        for epoch in np.unique(epochs):
            selected = epochs == epoch
            rows[selected] = self._order(int(epoch))(offsets[selected])
        return rows


def mix(n: np.ndarray, weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Maps the number of an example of a mixture to a source and to the number of the example in that source.

    Source 0 takes its share of the numbers at even distances. The other sources share the remaining numbers in the
    same way. After any number of examples, the count of each of K sources differs from its exact share by less than
    K - 1.

    Args:
        n: int64 [N], numbers of examples of the mixture.
        weights: positive weights of the sources; their scale does not matter.

    Returns:
        source [N] and number [N], int64. For each source, number runs through 0, 1, 2, ... as n increases.
    """
    source = np.full(n.shape, len(weights) - 1, np.int64)
    number, rest = n.astype(np.int64), sum(weights)
    unassigned = np.ones(n.shape, bool)
    for k, weight in enumerate(weights[:-1]):
        share = weight / rest
        before, after = np.floor(number * share).astype(np.int64), np.floor((number + 1) * share).astype(np.int64)
        taken = unassigned & (after > before)
        source[taken] = k
        number[taken] = before[taken]
        unassigned &= ~taken
        number[unassigned] -= before[unassigned]  # the remaining numbers are counted from 0 again
        rest -= weight
    return source, number


def subset(size: int, count: int | None, seed: int) -> np.ndarray:
    """Returns the sorted rows of a random subset of `count` of `size` rows; all rows if `count` is None or larger."""
    if count is None or count >= size:
        return np.arange(size)
    return np.sort(permutation(size, seed, SUBSETS)(np.arange(count)))
