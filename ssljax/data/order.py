"""The order of examples as a pure function: n-th example of the run -> row of the data."""

import numpy as np

from ssljax.base.errors import UserError


def permutation(size: int, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """The order of one epoch: a permutation of range(size) keyed by (seed, epoch, stream).

    Sorting raw Philox words (Salmon et al., 2011), rather than `Generator.permutation`, fixes the order for all
    versions of NumPy: the raw stream is part of NumPy's guarantee, the algorithms on top of it are not.
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    words = np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64)).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.uint32 if size < 2**32 else np.int64)


class Shuffle:
    """n -> row, with a fresh permutation every epoch; the two latest are kept (a batch may cross epochs)."""

    def __init__(self, size: int, seed: int, stream: int = 0):
        self.size, self.seed, self.stream = size, seed, stream
        self._orders: dict[int, np.ndarray] = {}

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = permutation(self.size, self.seed, epoch, self.stream)
            kept = list(self._orders.items())[-1:]
            self._orders = dict([*kept, (epoch, order)])
        return order

    def __call__(self, n: np.ndarray) -> np.ndarray:
        """Rows, int64 [N], of the examples numbered n, int64 [N]."""
        epochs, places = np.divmod(n, self.size)
        rows = np.empty(n.shape, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._order(int(epoch))[places[here]]
        return rows


def mix(n: np.ndarray, weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which source gives the n-th example of a mixture, and which of its own examples that is.

    Source 0 takes its share of the numbers at even distances, the other sources share what is left in the same way,
    so that after any number of examples every source has had its exact share, rounded.

    Args:
        n: int64 [N].
        weights: of the sources; their scale does not matter.

    Returns:
        part [N] and own [N], int64. For each part, own runs through 0, 1, 2, ... as n does.
    """
    part = np.full(n.shape, len(weights) - 1, np.int64)
    own, rest = n.astype(np.int64), sum(weights)
    open_ = np.ones(n.shape, bool)
    for k, weight in enumerate(weights[:-1]):
        share = weight / rest
        before, after = np.floor(own * share).astype(np.int64), np.floor((own + 1) * share).astype(np.int64)
        here = open_ & (after > before)
        part[here] = k
        # What is not taken keeps its place among the numbers that source k leaves over.
        own = np.where(here | ~open_, np.where(here, before, own), own - before)
        open_ &= ~here
        rest -= weight
    return part, own


def process_slice(batch_size: int, process: int, processes: int) -> slice:
    """The contiguous part of a global batch that one process loads."""
    if batch_size % processes:
        raise UserError(f"batch_size: got {batch_size}, must be a multiple of the number of processes ({processes})")
    rows = batch_size // processes
    return slice(process * rows, (process + 1) * rows)


def subset(size: int, count: int | None, seed: int) -> np.ndarray:
    """Sorted rows of a random subset of `count` of `size` rows (all of them if `count` is None or larger)."""
    if count is None or count >= size:
        return np.arange(size)
    # Epochs count from 0, so the last key of the space never meets one.
    return np.sort(permutation(size, seed, 2**63 - 1)[:count]).astype(np.int64)
