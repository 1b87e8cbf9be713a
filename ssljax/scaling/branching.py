"""Runs that continue the last state of another run, whose config may have another schedule."""

import contextlib
import json
import pathlib

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.base.files import write_whole
from ssljax.config import RunConfig
from ssljax.report.read import EVALUATIONS, METRICS, read_lines
from ssljax.runs.assembly import assemble
from ssljax.runs.workdir import Workdir
from ssljax.train.checkpoint import Checkpoints


def begin_from(parent: pathlib.Path, config: RunConfig, workdir: pathlib.Path) -> int:
    """Makes the newest checkpoint of another run, and its numbers until then, those of a run that has no checkpoint.

    The whole state is taken: parameters, moments of the optimiser, counters and sums of metrics. If the config gives
    the same steps until there, the run is then the one that it would be from scratch.

    Args:
        parent: workdir of the other run.
        config: config of the run.
        workdir: its workdir; if it has a checkpoint, nothing is changed.

    Returns:
        The step of the newest checkpoint of the run.

    Raises:
        UserError: the other run has no sound checkpoint, or its arrays have other shapes.
    """
    if found := parallel.lead(lambda: saved_steps(workdir)):
        return found[-1]
    own, other = Workdir(workdir), Workdir(parent)
    assembly = parallel.leader_first(lambda: assemble(config))
    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.mesh_context(assembly.program.mesh))
        parallel.together(lambda: stack.enter_context(own.lock()))
        source = Checkpoints(other.checkpoints, config.checkpoint, other.config().identity(), read_only=True)
        with contextlib.closing(source):
            restored = source.restore(assembly.program.target())
        if restored is None:
            raise UserError(f"{parent}: has no checkpoint, from which {workdir} could continue")
        state, step = restored
        parallel.lead(lambda: _copy_lines(parent, workdir, step))
        target = Checkpoints(own.checkpoints, config.checkpoint, config.identity())  # last: it makes the rest count
        with contextlib.closing(target):
            target.save(state, step)
    return step


def _copy_lines(parent: pathlib.Path, workdir: pathlib.Path, step: int) -> None:
    """Writes the metrics and evaluations of a run up to a step into another workdir."""
    for name, keys in (("metrics.jsonl", METRICS), ("evals.jsonl", EVALUATIONS)):
        lines = [line for line in read_lines(parent / name, keys) if line["step"] <= step]
        write_whole(workdir / name, "".join(json.dumps(line) + "\n" for line in lines))


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints of a workdir, in order."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit())
