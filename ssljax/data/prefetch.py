"""Batches prepared in advance by a thread of grain."""

import time
from collections.abc import Callable, Iterator
from typing import Any


class Prefetcher:
    """Iterates over (step, put(make(step))) for step in [start, stop), in order, ahead of the consumer.

    `make` and `put` are called in a thread, which starts when the first batch is awaited: libraries are imported by
    then, and two threads do not import them at the same time. An error in `make` or `put` is raised in the consumer at
    the step of the error, and ends the iteration.

    Args:
        make: step -> host batch.
        put: host batch -> device batch.
        start: first step.
        stop: the step after the last.
        depth: largest number of batches that are prepared in advance.

    Attributes:
        wait_seconds: total time that the consumer has waited for batches, in seconds.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        put: Callable[[Any], Any],
        start: int,
        stop: int,
        depth: int,
    ) -> None:
        import grain  # takes half a second to import, which only training needs

        self.wait_seconds = 0.0
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=depth)
        steps = grain.MapDataset.range(start, stop).map(lambda step: (int(step), put(make(int(step)))))
        self._batches = iter(steps.to_iter_dataset(options))
        self._closed = False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        if self._closed:
            raise StopIteration
        began = time.perf_counter()
        try:
            return next(self._batches)
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - began

    def close(self) -> None:
        """Drops the prepared batches and makes no more. A batch that is being made may still be put."""
        if not self._closed:
            self._closed = True
            self._batches.close()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
