"""One training run, from a config to a finished workdir, in the order of its steps."""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ssljax import data, evals, parallel, report
from ssljax.base.errors import UserError
from ssljax.base.signals import Signals
from ssljax.config import RunConfig, build, load
from ssljax.layers import attention
from ssljax.runs.arrays import Arrays, store_arrays
from ssljax.runs.assembly import Assembly, assemble
from ssljax.runs.evaluation import check_rules, evaluate_and_report, make_evaluator
from ssljax.runs.finished import Finished
from ssljax.runs.init_from import initial_state
from ssljax.runs.inspection import announce
from ssljax.runs.profiling import tracing, write_hlo
from ssljax.runs.recorder import Recorder
from ssljax.runs.trackers import open_trackers
from ssljax.runs.workdir import Resume, Workdir
from ssljax.train.checkpoint import Checkpoints
from ssljax.train.loop import AHEAD, Callback, Watchdog, fit
from ssljax.train.state import State

log = logging.getLogger(__name__)


def train(
    config: RunConfig | Mapping[str, Any] | str,
    workdir: str | pathlib.Path,
    resume: Resume = "auto",
    *,
    arrays: Arrays | None = None,
    callbacks: Sequence[tuple[int, Callback]] = (),
    until: int | None = None,
    profile: tuple[int, int] | None = None,
    hlo: bool = False,
) -> Finished:
    """Trains to the last step, evaluates the model and its controls, and writes the report.

    A run that is already in the workdir is continued.

    Args:
        config: the configuration; or a mapping of its keys, or the path of a config file, which are checked first. A
            `name` may be a class: an objective, a model, an optimiser.
        workdir: folder of the run, created if missing. It holds config.json, data.json, metrics.jsonl, checkpoints/,
            evals.jsonl, starts.jsonl and report.html.
        resume: "auto" refuses a workdir whose config has another identity; "force" continues it.
        arrays: the data instead of `data.source`: {name in the batch: array [N, ...]}, or {split: such a mapping}.
            They are stored in the workdir.
        callbacks: pairs (steps between calls, function), called as function(steps done, state) before checkpoints are
            saved; a function may return another state.
        until: step after which the run is saved and `Stopped` is raised; None: it runs to its end.
        profile: (start, stop): the steps after step `start`, up to step `stop`, are traced into profile/.
        hlo: the compiled step is written to step_hlo.txt; it is compiled once more, or read from JAX's cache.

    Returns:
        The run: state, parameters, final evaluations, metrics.

    Raises:
        UserError: a mistake in the config, the data or the workdir.
        Stopped: SIGTERM or SIGINT came, or step `until` was done. The steps that were done are saved, and the same call
            continues from them.
    """
    began, folder = time.perf_counter(), parallel.together(lambda: Workdir(workdir))
    given = _checked(config, folder, arrays)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        signals.check()
        stack.enter_context(parallel.joint_end())
        assembly, evaluator = parallel.leader_first(lambda: _assembled(folder.continued(given)))
        program, dataset = assembly.program, assembly.dataset
        config = dataclasses.replace(assembly.config, data=given.data)  # with the keys of a hardware preset
        _check_agreement(config, dataset.spec)
        stack.enter_context(parallel.mesh_context(program.mesh))
        checkpoints, state, start = open_folder(stack, assembly, folder, config, resume)
        signals.saved(start or None)
        folder.write_description(config, dataset.spec, assembly.config.data)
        record = announce(assembly, folder, start, began)
        trackers = stack.enter_context(open_trackers(config, folder, start))
        batch_of = functools.partial(dataset.batch, part=program.own_rows)
        batches = data.Prefetcher(batch_of, program.put_rows, start, assembly.steps, config.data.prefetch)
        stack.callback(batches.close)
        watchdog = Watchdog(config.log.stall_seconds)
        parts = (checkpoints, evaluator, signals, watchdog, trackers, record)
        recorder = Recorder(assembly, folder, start, batches, *parts)
        stack.callback(recorder.close)
        recorder.evaluate_left_out(start, state)
        if hlo:
            write_hlo(folder, program, assembly.batch_target())
        traces = stack.enter_context(tracing(folder, profile, start, assembly.steps))
        return finish(recorder, _fit(recorder, state, [*callbacks, *traces], until))


def _assembled(config: RunConfig) -> tuple[Assembly, evals.Evaluator]:
    """Opens the data of training and of the evaluations, whose mistakes are reported before anything is compiled."""
    assembly = assemble(config)
    return assembly, checked_evaluator(assembly)


def checked_evaluator(assembly: Assembly) -> evals.Evaluator:
    """Returns the evaluations of a run, whose data are there and fit the model.

    Raises:
        UserError: they do not.
    """
    evaluator, shapes = make_evaluator(assembly), assembly.program.shapes
    with parallel.mesh_context(assembly.program.mesh):
        check_rules(assembly.config, evaluator.check(shapes.params, shapes.extra))
    return evaluator


def open_folder(
    stack: contextlib.ExitStack, assembly: Assembly, folder: Workdir, config: RunConfig, resume: Resume
) -> tuple[Checkpoints, State, int]:
    """Takes the folder of a run for this process, and returns its checkpoints, the state to train from, and its step.

    Args:
        stack: receives what is to be closed after the run.
        assembly: the run.
        folder: its folder.
        config: its config, as it is written to the folder.
        resume: see `train`.

    Raises:
        UserError: the folder holds another run, another process trains in it, or it cannot keep a checkpoint.
    """
    parallel.together(lambda: stack.enter_context(folder.lock()))
    stack.enter_context(folder.sending())
    parallel.lead(lambda: folder.check(config, assembly.spec, resume))
    # Mistakes in the data are reported before anything is compiled.
    parallel.together(lambda: assembly.dataset.batch(0, part=assembly.program.own_rows))
    checkpoints = Checkpoints(folder.checkpoints, config.checkpoint, config.identity(), source=folder.source)
    stack.callback(checkpoints.close)
    checkpoints.prove()
    return checkpoints, *restore_or_begin(assembly, folder, checkpoints, resume)


def _fit(recorder: Recorder, state: State, callbacks: Sequence[tuple[int, Callback]], until: int | None) -> State:
    """Runs the steps that are left, with the callbacks of the recorder and of the caller."""
    return fit(
        recorder.assembly.program.jitted_step(),
        state,
        recorder.batches,
        stop=recorder.assembly.steps,
        until=until,
        callbacks=recorder.callbacks(callbacks),
        on_stop=recorder.save,
        exhausted=recorder.is_exhausted,
        signals=recorder.signals,
        votes=parallel.Votes(recorder.assembly.program.mesh, AHEAD),
        watchdog=recorder.watchdog,
        wait=recorder.wait,
    )


def finish(recorder: Recorder, state: State, controls: Callable[[], Any] | None = None) -> Finished:
    """Waits for the last checkpoint, evaluates the model and its controls, and writes the report.

    Args:
        recorder: the recorder of the run.
        state: the state after the last step.
        controls: returns the results of the controls, which runs of a stack may share; None: they are computed.
    """
    recorder.close()
    with recorder.record.timed("checkpoints"):
        recorder.checkpoints.wait()
    done, assembly, folder = int(state.step), recorder.assembly, recorder.workdir
    recorder.signals.saved(done)
    results = recorder.final_results(done)
    with recorder.record.timed("evaluations"):
        lines = evaluate_and_report(
            assembly, recorder.evaluator, state, folder, None, results, recorder.write_record, controls
        )
    # The callbacks of the last step have sent `results`.
    recorder.trackers.evaluations(done, [line for line in lines if results is None or line["of"] != "trained"])
    recorder.trackers.pictures(done, folder)
    if folder.leads:
        log.info("time      %s", report.time_of(report.read_run(folder.path)))
    return Finished(assembly.program.objective, state, lines, folder.path)


def _check_agreement(config: RunConfig, spec: data.DataSpec) -> None:
    """Raises UserError if the processes of a job have different settings, or see different data."""
    parallel.check_equal(json.dumps(config.to_dict(), sort_keys=True, default=str), "config: the settings")
    parallel.check_equal(spec.to_json(), "data: the files")


def _checked(config: RunConfig | Mapping[str, Any] | str, folder: Workdir, arrays: Arrays | None) -> RunConfig:
    """Returns the checked config, whose data are the arrays if there are any; they are stored in the workdir."""
    if arrays is not None and folder.name != str(folder.path):  # config.json would name a file of this machine
        raise UserError(f"arrays: cannot be kept in {folder.name!r}; give a folder of this machine as workdir")
    stored = {} if arrays is None else parallel.lead(lambda: store_arrays(folder.path.resolve(), arrays))
    if isinstance(config, str):
        config, remarks = load(config)
        for remark in remarks:
            log.info("%s", remark)
    if isinstance(config, RunConfig):
        return dataclasses.replace(config, data=dataclasses.replace(config.data, **stored)) if stored else config
    return build({**config, "data": {**config.get("data", {}), **stored}} if stored else config)


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
            f"steps: got {assembly.steps}, but {workdir.name!r} has a checkpoint of step {restored[1]} already"
        )
    attention.log_choices()
    if program.mesh.size > 1:
        log.info("parameters: %s", program.layout())
    if restored:
        log.info("resumed from the checkpoint of step %d", restored[1])
        return restored
    return initial_state(assembly, workdir), 0
