"""The training loop: takes batches, runs the step, calls callbacks (log, evaluate, save).

The order of one iteration is a contract:

1. The loop waits for the next batch, which a thread prepares in advance.
2. It dispatches the step. The host waits only if it is more than `AHEAD` steps ahead of the device.
3. The number of steps done increases by one, and the stall watchdog restarts, as after every callback.
4. The callbacks that are due run in the order of the list. Each gets the state that the previous one returned. A run
   lists log, evaluate, save: after a log point the checkpoint has empty meters, and evaluations of the same step can
   rank the checkpoint.
5. After a signal, `on_stop` saves the state of this step, and `Stopped` is raised. Before the first step is done, a
   signal raises `Stopped` at once. In a job of several processes, a signal to one of them stops all at the same step,
   `AHEAD` steps later. If the run is exhausted (early stopping), `on_stop` saves the state, and the loop ends.

A callback is due when its period divides the number of steps done, and after the last step.
"""

import collections
import contextlib
import faulthandler
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from ssljax.base.signals import Signals, Stopped
from ssljax.parallel import Votes
from ssljax.train.state import State

# Called with the number of steps done and the state; may return a new state (with empty meters, say).
Callback = Callable[[int, State], State | None]

AHEAD = 2  # number of steps that the host may dispatch ahead of the device


class Watchdog:
    """Dumps the stacks of all threads on stderr after `seconds` without a sign of life; None: never.

    The time starts with the first call of `alive`. To start it again takes a new thread, so signs of life within a
    hundredth of `seconds` count as one.
    """

    def __init__(self, seconds: float | None):
        self.seconds = seconds
        self._started = -math.inf

    def alive(self) -> None:
        """Starts the time again."""
        now = time.monotonic()
        if self.seconds is None or now - self._started < self.seconds / 100:
            return
        self._started = now
        if sys.__stderr__ is not None:  # notebooks replace `sys.stderr` by an object without a file
            faulthandler.dump_traceback_later(self.seconds, repeat=False, file=sys.__stderr__)

    def close(self) -> None:
        """Stops the time."""
        self._started = -math.inf
        faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which no step is expected, for an evaluation."""
        self.close()
        try:
            yield
        finally:
            self.alive()


class DeviceWait:
    """The time that the host has waited for the devices, in total.

    Attributes:
        seconds: the time in seconds.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, arrays: Any) -> None:
        """Waits until arrays are computed."""
        began = time.perf_counter()
        jax.block_until_ready(arrays)
        self.seconds += time.perf_counter() - began


def fit(
    step_fn: Callable[[State, Any], tuple[State, Any]],
    state: State,
    batches: Iterable[tuple[int, Any]],
    *,
    stop: int,
    until: int | None = None,
    callbacks: Sequence[tuple[int, Callback]],
    on_stop: Callback,
    exhausted: Callable[[], bool],
    signals: Signals,
    votes: Votes,
    watchdog: Watchdog,
    wait: DeviceWait,
) -> State:
    """Runs a step for each batch; the module docstring gives the order of one iteration.

    Args:
        step_fn: (state, batch) -> (state, metrics), compiled.
        state: the state before the first step; its buffers are donated.
        batches: pairs (number of the step from 0, batch on the devices).
        stop: number of steps of the whole run.
        until: step after which the run is saved and `Stopped` is raised; None: none.
        callbacks: pairs (period in steps, callback).
        on_stop: called once before `Stopped` is raised, or after an early end; it saves the state.
        exhausted: returns True if the run ends here, before `stop`.
        signals: the entered context that handles signals.
        votes: the processes' decisions to stop.
        watchdog: every step and every callback restarts its time.
        wait: waits for steps that are in flight.

    Returns:
        The state after the last step that was done.

    Raises:
        Stopped: on SIGTERM or SIGINT, or after step `until`.
    """
    in_flight: collections.deque[Any] = collections.deque()
    watchdog.alive()
    try:
        for number, batch in () if exhausted() else batches:
            with jax.profiler.StepTraceAnnotation("train", step_num=number):  # names the step in a trace
                state, metrics = step_fn(state, batch)
            signals.record()  # now there is a step to save
            in_flight.append(metrics)
            if len(in_flight) > AHEAD:
                wait(in_flight.popleft())
            done = number + 1
            watchdog.alive()
            for every, callback in callbacks:
                if done % every == 0 or done == stop:
                    state = callback(done, state) or state
                    watchdog.alive()
            if votes(bool(signals.received)) or done == until:
                on_stop(done, state)
                raise Stopped(done, of_all=True)
            if exhausted() and done < stop:
                on_stop(done, state)
                break
    finally:
        watchdog.close()
    return state
