"""The order of examples as a pure function from the number of an example in the run to a row of the data."""

import numpy as np

from ssljax.base.errors import UserError


def permutation(size: int, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """Returns the order of one epoch: a permutation of range(size) that is a function of (seed, epoch, stream).

    Raw Philox words are sorted (Salmon et al., 2011). NumPy guarantees the raw stream for all versions, but not the
    algorithm of `Generator.permutation`.
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    words = np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64)).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.uint32 if size < 2**32 else np.int64)


class Shuffle:
    """Maps the number of an example to a row, with a new permutation in every epoch."""

    def __init__(self, size: int, seed: int, stream: int = 0):
        self.size, self.seed, self.stream = size, seed, stream
        self._orders: dict[int, np.ndarray] = {}  # of the two latest epochs, since a batch may cross epochs

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = permutation(self.size, self.seed, epoch, self.stream)
            kept = list(self._orders.items())[-1:]
            self._orders = dict([*kept, (epoch, order)])
        return order

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
    same way. After any number of examples, the count of every source is its exact share up to rounding.

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


def process_slice(batch_size: int, process: int, processes: int) -> slice:
    """Returns the contiguous slice of a global batch that one process loads.

    Raises:
        UserError: the batch size is not a multiple of the number of processes.
    """
    if batch_size % processes:
        raise UserError(f"batch_size: got {batch_size}, must be a multiple of the number of processes ({processes})")
    rows = batch_size // processes
    return slice(process * rows, (process + 1) * rows)


def subset(size: int, count: int | None, seed: int) -> np.ndarray:
    """Returns the sorted rows of a random subset of `count` of `size` rows; all rows if `count` is None or larger."""
    if count is None or count >= size:
        return np.arange(size)
    # Epochs are counted from 0, so the largest key is never an epoch.
    return np.sort(permutation(size, seed, 2**63 - 1)[:count]).astype(np.int64)
