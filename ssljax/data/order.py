"""The order of examples as a pure function from the number of an example in the run to a row of the data."""

import bisect
import dataclasses
import math

import numpy as np

VERSION = 3  # of the order; written to data.json, so that a run is not continued in another order
# Keys of permutations that are no epochs, which are counted from 0.
SUBSETS, SLICES = 2**63 - 1, 2**63 - 2


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """Blocks of rows, of which a source reads each as a whole. The order of an epoch mixes a few blocks at a time.

    Attributes:
        numbers: int64 [N], the block of each row; it does not decrease.
        mixed: number of blocks whose rows are mixed.
    """

    numbers: np.ndarray
    mixed: int

    def of(self, rows: np.ndarray) -> "RowBlocks":
        """Returns the blocks of sorted rows, counted from 0 without gaps."""
        return RowBlocks(np.unique(self.numbers[rows], return_inverse=True)[1], self.mixed)


def permutation(size: int, seed: int, epoch: int, stream: int = 0, blocks: RowBlocks | None = None) -> np.ndarray:
    """Returns the order of one epoch: a permutation of range(size) that is a function of (seed, epoch, stream).

    Raw Philox words are sorted (Salmon et al., 2011). NumPy guarantees the raw stream for all versions, but not the
    algorithm of `Generator.permutation`.

    Args:
        size: number of rows.
        seed, epoch, stream: the key of the order.
        blocks: blocks of the rows: they are put into random order, and the rows of each `blocks.mixed` of them, one
            after another, are mixed. None: all rows are mixed.
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64))
    kind = np.uint32 if size < 2**32 else np.int64
    words = philox.random_raw(size)
    if blocks is None:
        return np.argsort(words, kind="stable").astype(kind)
    rank = np.argsort(np.argsort(philox.random_raw(int(blocks.numbers[-1]) + 1), kind="stable"))
    return np.lexsort((words, rank[blocks.numbers] // blocks.mixed)).astype(kind)


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
        self._orders: dict[int, np.ndarray] = {}  # of the two latest epochs, since a batch may cross epochs

    def _order(self, epoch: int) -> np.ndarray:
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

    def _arranged(self, epoch: int) -> np.ndarray:
        """Returns the permutation of an epoch, arranged for the batch that crosses from the epoch before."""
        order = permutation(self.size, self.seed, epoch, self.stream, self.blocks)
        before, after = self._cut(epoch)
        if not before or not after:
            return order
        earlier = self._orders.get(epoch - 1)
        if earlier is None:
            earlier = permutation(self.size, self.seed, epoch - 1, self.stream, self.blocks)
        used = np.zeros(self.size, bool)
        used[earlier[self.size - before :]] = True
        movable = self.size - self._cut(epoch + 1)[0] if self._keeps_end(epoch) else self.size
        chosen = np.flatnonzero(~used[order[:movable]])[:after]
        return np.concatenate([order[chosen], np.delete(order, chosen)])

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
            rows[selected] = self._order(int(epoch))[offsets[selected]]
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
    return np.sort(permutation(size, seed, SUBSETS)[:count]).astype(np.int64)
