"""The training loop: takes batches, runs the step, calls callbacks (log, evaluate, save).

The order of one iteration is a contract:

1. The loop waits for the next batch, which a thread prepares in advance.
2. It dispatches the step. The host waits only if it is more than `AHEAD` steps ahead of the device.
3. The number of steps done increases by one, and the stall watchdog restarts.
4. The callbacks that are due run in the order of the list. Each gets the state that the previous one returned. A run
   lists log, evaluate, save: after a log point the checkpoint has empty meters, and evaluations of the same step can
   rank the checkpoint.
5. After a signal, `on_stop` saves the state of this step, and `Stopped` is raised.

A callback is due when its period divides the number of steps done, and after the last step.
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

AHEAD = 2  # number of steps that the host may dispatch ahead of the device


class Stopped(Exception):
    """A signal (SIGTERM, SIGINT) stopped the run after `step` steps, whose state is saved."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


class Signals:
    """A context that records SIGTERM and SIGINT instead of ending the process; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._saved_step: int | None = None

    def saved(self, step: int) -> None:
        """Declares that the state after `step` steps is saved; later signals raise `Stopped(step)` immediately."""
        self._saved_step = step
        if self.received:
            raise Stopped(step)

    def __enter__(self) -> "Signals":
        self._previous: dict[int, Any] = {}
        # Only the main thread may set handlers; in other threads signals are left to the caller.
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
    """Runs a step for each batch; the module docstring gives the order of one iteration.

    Args:
        step_fn: (state, batch) -> (state, metrics), compiled.
        state: the state before the first step; its buffers are donated.
        batches: pairs (number of the step from 0, batch on the devices).
        stop: number of steps of the whole run.
        callbacks: pairs (period in steps, callback).
        on_stop: called once after a signal, before `Stopped` is raised; it saves the state.
        signals: the entered context that records signals.
        stall_seconds: seconds without a step after which the stacks of all threads are dumped; None: never.

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
    """Dumps the stacks of all threads after `seconds` without a call of the function that it yields."""

    def alive() -> None:
        if seconds:
            faulthandler.dump_traceback_later(seconds, repeat=False)

    alive()
    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()
