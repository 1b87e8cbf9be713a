"""One training run, from a config to a finished workdir, in the order of its steps."""

import contextlib
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from ssljax import data, parallel
from ssljax.base.errors import UserError
from ssljax.base.signals import Signals
from ssljax.config import RunConfig, build
from ssljax.layers import attention
from ssljax.runs.assembly import Assembly, assemble
from ssljax.runs.evaluation import check_best, evaluate_and_report, make_evaluator
from ssljax.runs.init_from import initial_state
from ssljax.runs.inspection import announce
from ssljax.runs.recorder import Recorder
from ssljax.runs.trackers import open_trackers
from ssljax.runs.workdir import Resume, Workdir
from ssljax.train.checkpoint import Checkpoints
from ssljax.train.loop import Watchdog, fit
from ssljax.train.state import State

log = logging.getLogger(__name__)


def train(
    config: RunConfig | Mapping[str, Any], workdir: str | pathlib.Path, resume: Resume = "auto"
) -> list[dict[str, Any]]:
    """Trains to the last step, evaluates the model and its controls, and writes the report.

    A run that is already in the workdir is continued.

    Args:
        config: the configuration, or a mapping of its keys, which is checked first.
        workdir: folder of the run, created if missing. It holds config.json, data.json, metrics.jsonl, checkpoints/,
            evals.jsonl and report.html.
        resume: "auto" refuses a workdir whose config has another identity; "force" continues it.

    Returns:
        The final evaluations, one mapping each, as written to evals.jsonl.

    Raises:
        UserError: a mistake in the config, the data or the workdir.
        Stopped: SIGTERM or SIGINT came. The steps that were done are saved, and the same call continues from them.
    """
    config = config if isinstance(config, RunConfig) else build(config)
    folder = Workdir(workdir)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        signals.check()
        assembly = assemble(folder.continued(config))
        program, dataset = assembly.program, assembly.dataset
        stack.enter_context(parallel.mesh_context(program.mesh))
        stack.enter_context(folder.lock())
        folder.check(config, dataset.spec, resume)
        evaluator = make_evaluator(assembly)
        check_best(config.checkpoint.best, evaluator.check(program.shapes.params, program.shapes.extra))
        dataset.batch(0)  # mistakes in the data are reported before anything is compiled
        checkpoints = Checkpoints(folder.checkpoints, config.checkpoint, config.identity())
        stack.callback(checkpoints.close)
        checkpoints.prove()
        state, start = restore_or_begin(assembly, folder, checkpoints, resume)
        signals.saved(start or None)
        folder.write_description(config, dataset.spec, assembly.config.data)
        announce(assembly, folder.path, start)
        trackers = stack.enter_context(open_trackers(config, folder, start))

        watchdog = Watchdog(config.log.stall_seconds)
        batches = data.Prefetcher(dataset.batch, program.put, start, assembly.steps, config.data.prefetch)
        stack.callback(batches.close)
        recorder = Recorder(assembly, folder, start, batches, checkpoints, evaluator, signals, watchdog, trackers)
        stack.callback(recorder.close)
        recorder.evaluate_left_out(start, state)
        state = fit(
            program.jitted_step(),
            state,
            batches,
            stop=assembly.steps,
            callbacks=recorder.callbacks(),
            on_stop=recorder.save,
            signals=signals,
            watchdog=watchdog,
        )
        recorder.close()
        checkpoints.wait()
        signals.saved(assembly.steps)
        lines = evaluate_and_report(assembly, evaluator, state, folder, results=recorder.results.get(assembly.steps))
        trackers.evaluations(assembly.steps, lines)
        return lines


def restore_or_begin(
    assembly: Assembly, workdir: Workdir, checkpoints: Checkpoints, resume: Resume
) -> tuple[State, int]:
    """Returns the state to train from and its number of completed steps.

    The newest undamaged checkpoint is restored. Without a checkpoint, the state is new, with 0 steps.

    Raises:
        UserError: the checkpoint is beyond the last step of the config, or `init_from` does not fit.
    """
    program = assembly.program
    restored = checkpoints.restore(program.target(), force=resume == "force")
    if restored and restored[1] > assembly.steps:
        raise UserError(
            f"steps: got {assembly.steps}, but {str(workdir.path)!r} has a checkpoint of step {restored[1]} already"
        )
    attention.log_choices()
    if program.mesh.size > 1:
        log.info("parameters: %s", program.layout())
    if restored:
        log.info("resumed from the checkpoint of step %d", restored[1])
        return restored
    return initial_state(assembly, workdir), 0
