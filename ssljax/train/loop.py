"""The loop: batches in, steps taken, callbacks called in a fixed order. It knows no evaluation and no report."""

import collections
import contextlib
import faulthandler
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from ssljax.train.state import State

# (every, callback): called after every `every` steps and after the last one, with the number of steps done.
# A callback may return a new state (emptied meters).
Callback = Callable[[int, State], State | None]

AHEAD = 2  # steps that the host may dispatch before the device has finished


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, SIGINT) and has saved; `step` steps are done."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


class Signals:
    """SIGTERM and SIGINT are collected instead of killing, from entering this context to leaving it.

    A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._saved_step: int | None = None

    def saved(self, step: int) -> None:
        """From now on nothing is lost by stopping at once: a signal raises `Stopped(step)` where it strikes."""
        self._saved_step = step
        if self.received:
            raise Stopped(step)

    def __enter__(self) -> "Signals":
        self._previous: dict[int, Any] = {}
        # Only the main thread may set handlers; elsewhere the caller owns the signals.
        with contextlib.suppress(ValueError):
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, old in self._previous.items():
            signal.signal(number, old)

    def _handle(self, number: int, frame: Any) -> None:
        if self._saved_step is not None:
            raise Stopped(self._saved_step)
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received.append(number)


def fit(
    step_fn: Callable[[State, Any], tuple[State, Any]],
    state: State,
    batches: Iterable[tuple[int, Any]],
    *,
    stop: int,
    callbacks: Sequence[tuple[int, Callback]],
    on_stop: Callback,
    signals: Signals,
    stall_seconds: float | None = None,
) -> State:
    """Take a step for each (number, batch) of `batches`.

    After step i (counted from 1) every callback whose `every` divides i runs, in the order given; after step `stop` all
    of them do. The host runs at most `AHEAD` steps ahead of the device and waits for nothing else, but for what a
    callback reads.

    Args:
        on_stop: called once when a signal came, before `Stopped` is raised.
        stall_seconds: dump the stacks of all threads when no step was dispatched for so long.

    Raises:
        Stopped: on SIGTERM or SIGINT.
    """
    in_flight: collections.deque[Any] = collections.deque()
    with _watchdog(stall_seconds) as alive:
        for number, batch in batches:
            state, metrics = step_fn(state, batch)
            in_flight.append(metrics)
            if len(in_flight) > AHEAD:
                jax.block_until_ready(in_flight.popleft())
            done = number + 1
            alive()
            for every, callback in callbacks:
                if done % every == 0 or done == stop:
                    state = callback(done, state) or state
            if signals.received:
                on_stop(done, state)
                raise Stopped(done)
    return state


@contextlib.contextmanager
def _watchdog(seconds: float | None) -> Iterator[Callable[[], None]]:
    def alive() -> None:
        if seconds:
            faulthandler.dump_traceback_later(seconds, repeat=False)

    alive()
    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()
