"""SIGTERM and SIGINT in the phases of a run."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from ssljax.base.signals import STOPPED, Abandoned, Signals, Stopped


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


def test_a_second_sigterm_does_not_interrupt_the_clean_up():
    """Before: it raised inside the clean-up, and in the outer context as if no step had been taken."""
    cleaned = []
    with pytest.raises(Stopped, match="step 4 is saved"), Signals():
        try:
            with Signals() as signals:
                signals.record()
                os.kill(os.getpid(), signal.SIGTERM)
                try:
                    signals.saved(4)
                finally:
                    os.kill(os.getpid(), signal.SIGTERM)
                    cleaned.append("inner")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append("outer")
    assert cleaned == ["inner", "outer"]
