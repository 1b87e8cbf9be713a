"""Batches made ahead of the step, in a thread of their own."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


class Prefetcher:
    """Iterates over (step, put(make(step))) for step in [start, stop), working up to `depth` batches ahead.

    An error of `make` or `put` is raised in the consumer, at the step where it happened.

    Attributes:
        wait_seconds: time that the consumer has waited for batches so far.
    """

    def __init__(
        self, make: Callable[[int], Any], put: Callable[[Any], Any], start: int, stop: int, depth: int
    ) -> None:
        self.wait_seconds = 0.0
        self._make, self._put, self._depth = make, put, depth
        self._next, self._stop = start, stop
        self._ready: deque[tuple[Any, BaseException | None]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        # A daemon: a consumer that dies without closing must not keep the process alive.
        self._thread = threading.Thread(target=self._work, args=(start,), name="ssljax-prefetch", daemon=True)
        self._thread.start()

    def _work(self, start: int) -> None:
        for step in range(start, self._stop):
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                if self._closed:
                    return
            batch, error = None, None
            try:
                batch = self._put(self._make(step))
            except BaseException as caught:  # handed over whatever it is: the consumer decides
                error = caught
            with self._changed:
                self._ready.append((batch, error))
                self._changed.notify_all()
            if error is not None:
                return

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        with self._changed:
            if self._closed or self._next >= self._stop:
                raise StopIteration
            started = time.perf_counter()
            self._changed.wait_for(lambda: self._ready or self._closed)
            self.wait_seconds += time.perf_counter() - started
            if not self._ready:
                raise StopIteration
            batch, error = self._ready.popleft()
            step = self._next
            self._next += 1
            self._changed.notify_all()
        if error is not None:
            self.close()
            raise error
        return step, batch

    def close(self) -> None:
        """Stops the thread, waits for the batch that it is making, and drops what is ready."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
