"""The loop: batches in, steps taken, callbacks called. It knows no evaluation and no report.

The order of one iteration is a contract:

1. the next batch is awaited (its preparation runs ahead in a thread);
2. the step is dispatched; the host waits only if it is more than `AHEAD` steps in front of the device;
3. `done` counts the step, and the stall watchdog is reset;
4. callbacks that are due run in the order of the list, each on the state that the one before returned. A run lists
   log, evaluate, save: a checkpoint has empty meters after a log point, and can be ranked by evaluations of its step;
5. if a signal came, `on_stop` saves this very step and `Stopped` is raised.

A callback is due when its period divides `done`, and after the last step.
"""

import collections
import contextlib
import faulthandler
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from ssljax.train.state import State

# Called with the number of steps done and the state; may return a new state (with empty meters, say).
Callback = Callable[[int, State], State | None]

AHEAD = 2  # steps that the host may dispatch before the device has finished


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, SIGINT), and step `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


class Signals:
    """A context in which SIGTERM and SIGINT are recorded and do not kill; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._saved_step: int | None = None

    def saved(self, step: int) -> None:
        """Declares that step `step` is saved: from now on a signal raises `Stopped(step)` immediately."""
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
    """Takes a step for each (number, batch); the module docstring states the order of work.

    Args:
        step_fn: (state, batch) -> (state, metrics), compiled.
        state: before the first step; it is consumed.
        batches: (number of the step from 0, batch on the devices).
        stop: number of steps of the whole run.
        callbacks: (period in steps, callback).
        on_stop: called once after a signal, before `Stopped` is raised.
        signals: the open context that records signals.
        stall_seconds: seconds without a step after which the stacks of all threads are dumped.

    Returns:
        The state after the last step.

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
