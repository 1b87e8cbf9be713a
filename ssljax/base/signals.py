"""SIGTERM and SIGINT: a run stops in a bounded time, with its state saved, and says so."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

STOPPED = 75  # exit code of a run that a signal stopped: EX_TEMPFAIL of sysexits.h, a scheduler may requeue it
GRACE_SECONDS = 10.0  # time in which a library that computes without Python has to return before the first step


class Stopped(BaseException):
    """A signal (SIGTERM, SIGINT) stopped the run; the same command continues it.

    It is no `Exception`, as a handler may raise it anywhere: no library may take it for an error of its own.

    Attributes:
        step: number of the saved step that the run continues from; None: no step was saved.
        of_all: True if all processes of the job stop at this step.
    """

    exit_code = STOPPED

    def __init__(self, step: int | None = None, of_all: bool = False):
        super().__init__(f"no step was taken; {_AGAIN}" if step is None else f"step {step} is saved; {_AGAIN}")
        self.step, self.of_all = step, of_all


_AGAIN = "the same command continues"


class Abandoned(BaseException):
    """A signal came inside `Signals.abandoning`."""


class Signals:
    """A context that handles SIGTERM and SIGINT.

    At first, and after `saved`, everything that the run has is on the disk: a signal raises `Stopped` at once. A
    library may compute for minutes without Python, so a thread ends the process `GRACE_SECONDS` later. After `record`,
    signals are recorded in `received`, and the loop stops after its step. A second SIGINT interrupts at once.

    Contexts may be nested; the inner one takes over what the outer one received.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._at_once = True
        self._step: int | None = None  # the saved step
        self._abandoning = False
        self._raised = False
        self._entered = False

    def saved(self, step: int | None) -> None:
        """Declares that the state after `step` steps is on the disk: signals raise `Stopped` at once."""
        self._step, self._at_once = step, True
        self.check()

    def record(self) -> None:
        """Declares that there are steps to save: signals are recorded."""
        self.check()
        self._at_once = False

    def check(self) -> None:
        """Raises `Stopped` if a signal came in a phase in which nothing has to be saved."""
        if self._at_once and self.received:
            self._raised = True
            raise Stopped(self._step)

    @contextlib.contextmanager
    def abandoning(self) -> Iterator[None]:
        """A context in which a signal raises `Abandoned`, for work that may be lost (an evaluation)."""
        self._abandoning = True
        try:
            if self.received:
                raise Abandoned
            yield
        finally:
            self._abandoning = False

    def __enter__(self) -> "Signals":
        self._previous: dict[int, Any] = {}
        outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(outer, Signals):
            self.received = outer.received
        # Only the main thread may set handlers; in other threads signals are left to the caller.
        with contextlib.suppress(ValueError):
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
            self._entered = True
            self._watch()
        return self

    def __exit__(self, *_: Any) -> None:
        for number, old in self._previous.items():
            signal.signal(number, old)
        if self._entered:
            self._entered = False
            signal.set_wakeup_fd(self._outer_wakeup)
            os.close(self._write)

    def _watch(self) -> None:
        """Starts a thread that wakes up at a signal even while the main thread runs no Python."""
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._outer_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._enforce, args=(read,), name="signals", daemon=True).start()

    def _enforce(self, read: int) -> None:
        while number := os.read(read, 1):  # empty after the context has closed the pipe
            if number[0] in self._previous:
                time.sleep(GRACE_SECONDS)
                if self._entered and self._at_once and not self._raised:
                    print(f"stopped: {Stopped(self._step)}", file=sys.stderr, flush=True)
                    os._exit(STOPPED)
        os.close(read)

    def _handle(self, number: int, frame: Any) -> None:
        again = bool(self.received)
        self.received.append(number)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._abandoning:
            self._abandoning = False
            raise Abandoned
        if self._at_once and not again:  # a second SIGTERM must not interrupt the clean-up
            self._raised = True
            raise Stopped(self._step)
