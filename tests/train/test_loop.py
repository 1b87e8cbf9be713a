"""The order of one iteration of the loop."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from ssljax.base.signals import STOPPED, Abandoned, Signals, Stopped
from ssljax.train.loop import Watchdog, fit


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
            watchdog=Watchdog(None),
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

    with Signals() as signals, pytest.raises(Stopped, match="before the first step") as stopped:
        options = {"stop": 2, "callbacks": [], "on_stop": None, "signals": signals, "watchdog": Watchdog(None)}
        fit(step, 0, [(0, 0), (1, 1)], **options)
    assert stopped.value.step is None


def test_no_library_takes_a_stop_for_an_error_of_its_own():
    with Signals() as signals, pytest.raises(Stopped, match="step 7 is saved"):
        signals.saved(7)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except Exception:  # as a reader of a checkpoint does, which would call it damaged
            raise AssertionError from None


def test_a_signal_abandons_an_evaluation_and_is_kept():
    with Signals() as signals:
        signals.record()
        with pytest.raises(Abandoned), signals.abandoning():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        with pytest.raises(Abandoned), signals.abandoning():
            raise AssertionError("no evaluation starts after a signal")
        assert signals.received == [signal.SIGTERM]
        with pytest.raises(Stopped):
            signals.saved(3)


def test_an_inner_context_takes_over_a_signal_that_a_library_has_swallowed():
    with Signals():
        with contextlib.suppress(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        with Signals() as inner, pytest.raises(Stopped):
            inner.check()


def test_a_library_that_does_not_return_is_ended():
    """It computes outside Python, as a compiler does, so no handler runs."""
    code = """
import hashlib, os, signal, threading
from ssljax.base import signals

signals.GRACE_SECONDS = 0.2
with signals.Signals():
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000_000)  # minutes
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == STOPPED and done.stderr.startswith("stopped: "), done.stderr


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
