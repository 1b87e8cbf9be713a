"""The order of one iteration of the loop."""

import os
import signal
import subprocess
import sys

import pytest

from ssljax.base.signals import Signals, Stopped
from ssljax.train.loop import DeviceWait, Watchdog, fit


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
            exhausted=lambda: False,
            signals=signals,
            votes=bool,  # as of a single process
            watchdog=Watchdog(None),
            wait=DeviceWait(),
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


def test_a_signal_before_the_first_step_is_done_stops_at_once():
    def step(state, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal must end the step")

    with Signals() as signals, pytest.raises(Stopped, match="no step was taken") as stopped:
        options = {
            "stop": 2,
            "callbacks": [],
            "on_stop": None,
            "exhausted": bool,
            "signals": signals,
            "votes": bool,
            "watchdog": Watchdog(None),
            "wait": DeviceWait(),
        }
        fit(step, 0, [(0, 0), (1, 1)], **options)
    assert stopped.value.step is None


def test_the_watchdog_does_not_bark_during_an_evaluation():
    code = """
import sys, time
from ssljax.train.loop import Watchdog
watchdog = Watchdog(0.3)
watchdog.alive()
if sys.argv[1] == "paused":
    with watchdog.paused():
        time.sleep(0.8)
else:
    time.sleep(0.8)
watchdog.close()
"""
    for how, barks in (("paused", False), ("stalled", True)):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True)
        assert ("most recent call first" in done.stderr) == barks
