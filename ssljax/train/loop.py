"""The loop: batches in, steps taken, callbacks called in a fixed order. It knows no evaluation and no report."""

import contextlib
import faulthandler
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ssljax.train.state import State

# (every, callback): called after every `every` steps and after the last one, with the number of steps done.
# A callback may return a new state (emptied meters).
Callback = Callable[[int, State], State | None]


class Stopped(Exception):
    """The run was asked to stop (SIGTERM) and has saved; `step` steps are done."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


def fit(
    step_fn: Callable[[State, Any], tuple[State, Any]],
    state: State,
    batches: Iterable[tuple[int, Any]],
    *,
    stop: int,
    callbacks: Sequence[tuple[int, Callback]],
    on_stop: Callback,
    stall_seconds: float | None = None,
) -> State:
    """Take a step for each (number, batch) of `batches`.

    After step i (counted from 1) every callback whose `every` divides i runs, in the order given; after step `stop` all
    of them do. Nothing here waits for the device: a callback that reads numbers does.

    Args:
        on_stop: called once when SIGTERM or SIGINT came, before `Stopped` is raised.
        stall_seconds: dump the stacks of all threads when no step is dispatched for so long.

    Raises:
        Stopped: on SIGTERM or SIGINT.
    """
    with _signals() as received, _watchdog(stall_seconds) as alive:
        for number, batch in batches:
            state, _ = step_fn(state, batch)
            done = number + 1
            alive()
            for every, callback in callbacks:
                if done % every == 0 or done == stop:
                    state = callback(done, state) or state
            if received and done < stop:
                on_stop(done, state)
                raise Stopped(done)
    return state


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying; a second SIGINT interrupts at once."""
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: the caller owns the signals
        yield received
        return
    try:
        yield received
    finally:
        for s, old in previous.items():
            signal.signal(s, old)


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
