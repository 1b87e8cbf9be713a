"""Records of how a step runs: a trace of some steps, and the compiled program of the step."""

import contextlib
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax

from ssljax.base.errors import UserError
from ssljax.base.files import write_whole
from ssljax.runs.workdir import Workdir
from ssljax.train.loop import Callback
from ssljax.train.program import Program
from ssljax.train.state import State

log = logging.getLogger(__name__)

FOLDER, HLO = "profile", "step_hlo.txt"


def parse_steps(text: str) -> tuple[int, int]:
    """Returns (start, stop) of "start:stop".

    Raises:
        UserError: the text is no such range, or the range has no steps or begins with the first step.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    start, stop = map(int, found.groups()) if found else (0, 0)
    if not 1 <= start < stop:
        raise UserError(
            f"--profile: got {text!r}, must be START:STOP with 1 <= START < STOP, such as 10:13 for the three steps "
            "after step 10 (the first step compiles)"
        )
    return start, stop


@contextlib.contextmanager
def tracing(
    folder: Workdir, steps: tuple[int, int] | None, done: int, last: int
) -> Iterator[list[tuple[int, Callback]]]:
    """A context with the callbacks that record steps into the folder `profile` of a workdir, in the leading process.

    Args:
        folder: the workdir.
        steps: (start, stop): the steps after step `start` are recorded, up to step `stop`; None: no callbacks.
        done, last: steps that are done already, and the last step of the run.
    """
    if steps is not None and not (done < steps[1] and steps[0] < last):
        log.warning("--profile: the run takes steps %d to %d, so nothing is recorded", done + 1, last)
    if steps is None or not folder.leads:
        yield []
        return
    start, stop = steps
    running = False

    def trace(step: int, state: State) -> None:
        nonlocal running
        if running and step >= stop:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            running = False
            log.info("steps %d to %d are recorded in %s; open it with TensorBoard", start, stop, folder.path / FOLDER)
        elif not running and start <= step < stop:
            jax.block_until_ready(state)  # earlier steps are not recorded
            jax.profiler.start_trace(str(folder.path / FOLDER))
            running = True

    try:
        yield [(1, trace)]
    finally:
        if running:  # the run ends before the last step to be recorded
            jax.profiler.stop_trace()


def write_hlo(folder: Workdir, program: Program, batch: Any) -> pathlib.Path:
    """Writes the optimised HLO text of the compiled step into the workdir; returns the path.

    All processes of a job call it, since they compile together.

    Args:
        folder: the workdir.
        program: the program; its mesh is the current one.
        batch: the shapes of a batch with shardings.
    """
    step: Any = program.jitted_step()
    text = step.lower(program.target(), batch).compile().as_text()
    path = folder.path / HLO
    if folder.leads:
        write_whole(path, text)
        log.info("the compiled step is in %s", path)
    return path
