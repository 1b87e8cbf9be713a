"""A trainer in a process of its own, as its worker sees it."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ssljax.base.errors import one_line
from ssljax.base.signals import Stopped
from ssljax.scaling.ledger import Claim, Outcome
from ssljax.scaling.trainer import OUTPUT, last_line, version_of

TRAINER = [sys.executable, "-m", "ssljax.scaling.trainer"]  # the command of a trainer


class TrainerProcess:
    """A trainer that works on claims.

    Args:
        store: folder of the store.
        claims: the runs, of one shape.
        environment: variables that the trainer gets in addition.
        job: {"coordinator", "process_id", "num_processes"} of a trainer that is one process of a job; None: it is
            alone.
        output: name of the file in the workdir of the first run to which it prints.
    """

    def __init__(
        self,
        store: pathlib.Path,
        claims: Sequence[Claim],
        environment: Mapping[str, str],
        job: Mapping[str, Any] | None = None,
        output: str = OUTPUT,
    ):
        self.claims, self._store, self._began, self._received = list(claims), store, time.monotonic(), b""
        folder = store / "runs" / claims[0].hash
        folder.mkdir(parents=True, exist_ok=True)
        self._output = folder / output
        self._result, writing = os.pipe()
        os.set_blocking(self._result, False)
        with open(self._output, "ab") as file:
            self._process = subprocess.Popen(
                TRAINER,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                pass_fds=[writing],
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C reaches the worker alone, which passes it on
            )
        os.close(writing)
        order = {"store": str(store.resolve()), "result": writing, "job": job}
        order["claims"] = [dataclasses.asdict(claim) for claim in claims]
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has died at once, which `ended` finds
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def ended(self) -> bool:
        """Takes what the trainer has written so far; returns True if it has ended."""
        ended = self._process.poll() is not None  # before the last read
        with contextlib.suppress(BlockingIOError):
            while found := os.read(self._result, 1 << 16):
                self._received += found
        return ended

    def outcomes(self) -> list[Outcome]:
        """Returns the outcomes that an ended trainer wrote; if it died before, one of each run that says so."""
        os.close(self._result)
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return [Outcome(**values) for values in json.loads(self._received)]
        except ValueError:
            return [self._died(claim) for claim in self.claims]

    def terminate(self) -> None:
        """Lets the trainer save and end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """Ends the trainer at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _died(self, claim: Claim) -> Outcome:
        workdir = self._store / "runs" / claim.hash
        step, loss, _ = last_line(workdir)
        seconds = round(time.monotonic() - self._began, 3)
        code = self._process.returncode
        state, why = "failed", f"exit code {code}"
        if code == Stopped.exit_code or -code in (signal.SIGTERM, signal.SIGINT):
            state, why = "planned", ""
        elif code < 0:
            name = signal.Signals(-code).name
            why = f"killed by {name}" + (", as for want of memory" if -code == signal.SIGKILL else "")
        elif said := _last_words(self._output):
            why = f"exit code {code}: {said}"
        return Outcome(state, why, step, loss, seconds, {}, version_of(workdir))


def _last_words(path: pathlib.Path) -> str:
    """Returns the last line that a process printed."""
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").split("\n")
        return one_line(next((line.strip() for line in reversed(lines) if line.strip()), ""))[:300]
    return ""
