"""The order of one iteration of the loop."""

import os
import signal

import pytest

from ssljax.train.loop import Signals, Stopped, fit


def run(steps, stop_at=None):
    """Names of the calls, in order."""
    calls = []

    def step(state, batch):
        calls.append(f"step {batch}")
        return state + 1, {}

    def callback(name):
        def call(done, state):
            assert state == done + 100 * sum("log" in c for c in calls), "a callback sees the state of the one before"
            calls.append(f"{name} {done}")
            if name == "save" and done == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return state + 100 if name == "log" else None

        return call

    with Signals() as signals:
        fit(
            step,
            0,
            [(i, i) for i in range(steps)],
            stop=steps,
            callbacks=[(2, callback("log")), (4, callback("evaluate")), (1, callback("save"))],
            on_stop=lambda done, state: calls.append(f"stop {done}"),
            signals=signals,
        )
    return calls


def test_callbacks_that_are_due_run_in_the_order_of_the_list():
    assert run(3) == [
        *("step 0", "save 1"),
        *("step 1", "log 2", "save 2"),
        *("step 2", "log 3", "evaluate 3", "save 3"),  # after the last step all are due
    ]


def test_a_signal_saves_the_current_step_and_stops():
    with pytest.raises(Stopped) as stopped:
        run(8, stop_at=2)
    assert stopped.value.step == 2
