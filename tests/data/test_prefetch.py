"""Prefetched batches: order, depth, waiting time, errors."""

import threading
import time

import pytest

from ssljax.data import Prefetcher


def test_order_and_depth():
    made = []

    def make(step):
        made.append(step)
        return step * 10

    with Prefetcher(make, lambda batch: batch + 1, 3, 20, depth=2) as batches:
        for step, batch in batches:
            assert batch == step * 10 + 1
            assert made[-1] <= step + 2  # at most two are prepared
    assert made == list(range(3, 20))


def test_batches_are_prepared_in_advance_and_waiting_is_counted():
    def make(step):
        time.sleep(0.03)
        return step

    with Prefetcher(make, lambda batch: batch, 0, 100, depth=4) as batches:
        next(batches)
        first = batches.wait_seconds
        assert first > 0.02
        time.sleep(0.4)  # four are ready
        for _ in range(4):
            next(batches)
        assert batches.wait_seconds - first < 0.02


def test_the_thread_starts_with_the_first_batch():
    """So it imports nothing while the run still imports its parts."""
    before = set(threading.enumerate())
    with Prefetcher(lambda step: step, lambda batch: batch, 0, 5, depth=2) as batches:
        time.sleep(0.1)
        assert set(threading.enumerate()) <= before
        next(batches)


def test_an_error_is_raised_at_its_step():
    def make(step):
        if step == 5:
            raise KeyError("row 5")
        return step

    batches = Prefetcher(make, lambda batch: batch, 0, 10, depth=3)
    assert [next(batches)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="row 5"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_an_error_of_put_is_raised():
    def put(_):
        raise ValueError("no device")

    with pytest.raises(ValueError, match="no device"), Prefetcher(lambda step: step, put, 0, 2, depth=1) as batches:
        next(batches)


def test_close_ends_the_thread():
    before = set(threading.enumerate())
    batches = Prefetcher(lambda step: step, lambda batch: batch, 0, 10**9, depth=2)
    next(batches)
    batches.close()
    batches.close()
    for _ in range(200):  # the thread ends after its current batch
        if set(threading.enumerate()) <= before:  # other threads may end meanwhile
            break
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
    with pytest.raises(StopIteration):
        next(batches)


def test_empty_range():
    with Prefetcher(lambda step: step, lambda batch: batch, 4, 4, depth=2) as batches:
        assert list(batches) == []
