"""The record of one start of a run in starts.jsonl: program, machine, versions, and the parts of its time."""

import contextlib
import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ssljax.runs.workdir import Workdir

Part = Literal["evaluations", "checkpoints"]


class StartRecord:
    """A line of starts.jsonl, which is written at the start, at each checkpoint, and at the end.

    Its `seconds` are those of this start alone, in which steps that a crash undid count too:

    - "total": all time since the call of `train`, up to the last writing.
    - "start": until the first step is dispatched: data, compilation, restored state.
    - "waiting": the loop waits for a batch.
    - "evaluations", "checkpoints": between the steps, and after the last one.
    - "lost": of the start before, for steps that this start does again; it is in the total of that start.

    The rest of the total is training.

    Args:
        workdir: the folder of the run.
        values: the other keys of the line, `time` and `step` among them.
        began: `time.perf_counter()` at the call of `train`.
    """

    def __init__(self, workdir: Workdir, values: Mapping[str, Any], began: float):
        self._workdir, self._values, self._began = workdir, values, began
        self._spent: dict[Part, float] = {"evaluations": 0.0, "checkpoints": 0.0}
        self._open: tuple[Part, float] | None = None  # the part that runs now, and its beginning
        self._start: float | None = None
        self._waited_before = self._lost = self._written = 0.0
        self.write(0.0)

    @contextlib.contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Adds the time that is spent inside to a part."""
        self._open = part, time.perf_counter()
        try:
            yield
        finally:
            self._spent, self._open = self._parts(), None

    def add(self, part: Part, seconds: float) -> None:
        """Adds time that was spent elsewhere, for another run of a stack, to a part."""
        self._spent[part] += seconds

    def stepped(self, waited: float) -> None:
        """Ends the part "start" at the first call; `waited` is the time in seconds that was waited for data so far."""
        if self._start is None:
            self._start, self._waited_before = self._rest(), waited

    def lose(self, seconds: float) -> None:
        """Notes the time of steps that are done again, since no checkpoint has them."""
        self._lost = seconds

    def write(self, waited: float, every: float = 0.0) -> None:
        """Writes the line.

        Args:
            waited: the time in seconds that was waited for data so far.
            every: writes only if the last writing is as many seconds ago.
        """
        if every and time.perf_counter() - self._written < every:
            return
        self._written = time.perf_counter()
        seconds: dict[str, float] = {
            "total": time.perf_counter() - self._began,
            "start": self._rest() if self._start is None else self._start,
            "waiting": 0.0 if self._start is None else waited - self._waited_before,
            "lost": self._lost,
        }
        seconds |= {str(part): value for part, value in self._parts().items()}
        rounded = {part: round(value, 3) for part, value in seconds.items()}
        self._workdir.write_start({**self._values, "seconds": rounded})

    def _parts(self) -> dict[Part, float]:
        spent = dict(self._spent)
        if self._open is not None:
            part, began = self._open
            spent[part] += time.perf_counter() - began
        return spent

    def _rest(self) -> float:
        return time.perf_counter() - self._began - sum(self._parts().values())


def environment() -> dict[str, Any]:
    """Returns the command, the host, Python, the versions of libraries, and the commit of the package.

    The commit is None if the package is not a checkout.
    """
    return {
        "command": shlex.join(sys.argv),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(pathlib.Path(__file__).parents[2]),
    }


def _versions() -> dict[str, str]:
    names = ("ssljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit(root: pathlib.Path) -> str | None:
    """Returns the commit of a checkout; None for another folder, even in a checkout of something else."""
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        done = subprocess.run(git, capture_output=True, text=True, timeout=5)
        return done.stdout.strip() if done.returncode == 0 else None
    return None
