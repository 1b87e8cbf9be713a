"""Evaluations of a run: during training, at its end, and later from its workdir."""

import contextlib
import dataclasses
import errno
import functools
import logging
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ssljax import data, evals, losses, parallel, report, views
from ssljax.base.errors import UserError, nearest
from ssljax.config import RunConfig, override
from ssljax.evals.held_out import held_out_loss
from ssljax.layers import attention
from ssljax.runs.assembly import Assembly, assemble, check_batches, devices_that_fit
from ssljax.runs.loading import is_imported
from ssljax.runs.pictures import pictures
from ssljax.runs.workdir import Workdir
from ssljax.train.checkpoint import Checkpoints
from ssljax.train.state import State

log = logging.getLogger(__name__)


def evaluate(
    workdir: str | pathlib.Path,
    names: list[str] | None = None,
    step: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Evaluates a finished (or running) workdir, together with its controls.

    Args:
        workdir: the folder of the run.
        names: evaluations of its config; None: all.
        step: number of the checkpoint; None: the newest.
        changes: {"NAME.key": value}: other values of keys of evaluations, for this call. A new NAME is another
            evaluation.

    Returns:
        The lines that were added to evals.jsonl.

    Raises:
        UserError: no workdir, no checkpoint, an unknown name or key, or a damaged line in evals.jsonl.
    """
    if is_imported(workdir):
        train = f"ssljax train --config FILE --workdir DIR --config.steps=0 --config.init_from.path={workdir}"
        raise UserError(f"--workdir: {str(workdir)!r} has no data and no evaluations; `{train}` evaluates its model")
    folder = Workdir(workdir)
    parallel.lead(folder.evaluations)  # a damaged line is reported before anything is computed
    with parallel.joint_end(), open_run(folder, step) as (assembly, state):
        values: Mapping[str, Any] = {"evals": assembly.config.evals}
        for key, value in (changes or {}).items():
            values, _ = override(values, f"evals.{key}", value)
        assembly = dataclasses.replace(assembly, config=dataclasses.replace(assembly.config, **values))
        check_batches(assembly.config, assembly.program.mesh)
        evaluator = make_evaluator(assembly)
        evaluator.check(assembly.program.shapes.params, assembly.program.shapes.extra, names)
        return evaluate_and_report(assembly, evaluator, state, folder, names)


@contextlib.contextmanager
def open_run(workdir: Workdir, step: int | None = None) -> Iterator[tuple[Assembly, State]]:
    """Yields the run of a workdir and its state at a checkpoint, in the context of a mesh of this machine.

    Args:
        workdir: the folder of the run.
        step: number of the checkpoint; None: the newest.

    Raises:
        UserError: no workdir, or no checkpoint.
    """
    config = workdir.config()
    # Not the mesh of training: this machine may have other devices.
    devices = devices_that_fit(config)
    # Tokenizer, vocabulary and classes are those of the run: its training files may have changed or gone.
    known = dataclasses.replace(config.data, tokenizer=workdir.tokenizer(config.data.tokenizer))
    config = dataclasses.replace(config, mesh=parallel.MeshConfig(), microbatches=1, data=known)
    assembly = assemble(config, devices, workdir.data_spec())
    workdir.take_checkpoints(step)
    checkpoints = Checkpoints(
        workdir.checkpoints, config.checkpoint, config.identity(), read_only=True, source=workdir.source
    )
    with parallel.mesh_context(assembly.program.mesh):
        found = checkpoints.restore(assembly.program.target(), step, force=True)
        checkpoints.close()
        if found is None:
            raise UserError(f"--workdir: {workdir.name!r} has no checkpoint yet")
        attention.log_choices()
        yield assembly, found[0]


def evaluate_and_report(
    assembly: Assembly,
    evaluator: evals.Evaluator,
    state: State,
    workdir: Workdir,
    names: list[str] | None = None,
    results: Mapping[str, Mapping[str, float]] | None = None,
    before_report: Callable[[], None] = lambda: None,
    controls: Callable[[], Mapping[str, Mapping[str, Mapping[str, float]]]] | None = None,
) -> list[dict[str, Any]]:
    """Evaluates the model and its controls, prints the table and draws the report.

    In a folder that cannot be written to, the table is printed all the same, and a warning names each file that is not
    written.

    Args:
        assembly: the run.
        evaluator: the evaluations of the run.
        state: the state to evaluate.
        workdir: the folder that receives lines, features and the report.
        names: evaluations to run; None: all.
        results: metrics of the trained model, if they were already measured at this step.
        before_report: called once everything that the report shows is measured.
        controls: returns the results of the controls; None: they are computed.

    Returns:
        The lines that were added to evals.jsonl.
    """
    step = int(state.step)
    state = state.replace(opt_state=None)  # frees memory for the untrained control
    lines = evaluator.records(step, results or evaluator.run(evaluation_params(state), state.extra, names))
    with _where_possible():
        workdir.write_evaluations(lines)  # before the controls, which may fail
    found_controls = controls() if controls else control_results(assembly, evaluator, names)
    for control, found in found_controls.items():
        lines += evaluator.records(step, found, of=control)
    if lines and workdir.leads:
        report.print_table(report.evaluation_table(lines))
    with _where_possible("evals.jsonl"):
        workdir.write_evaluations(lines)
    _write_pictures(assembly, evaluator, state, workdir)
    before_report()
    with _where_possible("report.html"):
        path = workdir.write_report()
        if workdir.leads:
            print(f"report: {path}" if workdir.name == str(workdir.path) else f"report: {workdir.name}/{path.name}")
    return lines


def control_results(
    assembly: Assembly, evaluator: evals.Evaluator, names: list[str] | None = None
) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """Returns {control: {evaluation: {metric: value}}}; they depend on objective, seed and data, not on training."""
    untrained = assembly.program.jitted_variables()(assembly.config.seed)
    return evaluator.controls(untrained.params, untrained.extra, names)


def _write_pictures(assembly: Assembly, evaluator: evals.Evaluator, state: State, workdir: Workdir) -> None:
    """Writes features of held-out examples for the figure of the embedding, and the pictures of the objective."""
    params, embedding = evaluation_params(state), {}
    probes = [name for name, evaluation in evaluator.evaluations.items() if evaluation.feature_names()]
    if probes:
        embedding = dict(evaluator.embedding(params, state.extra, probes[0]))
        with _where_possible("embedding.npz"):
            if embedding:
                workdir.write_embedding(embedding)
    if assembly.config.log.pictures:
        found = pictures(assembly, evaluator, params, state.extra, embedding)  # computed by all processes
        with _where_possible("pictures"):
            workdir.write_pictures(report.picture_files(found) if workdir.leads else {})


@contextlib.contextmanager
def _where_possible(name: str | None = None) -> Iterator[None]:
    """Turns a missing permission to write a file of the workdir into a warning with its name; None: no warning."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        if name is not None:
            log.warning("%s is not written: %s", name, error.strerror)


def evaluation_params(state: State) -> Any:
    """Returns the parameters to evaluate: the averaged ones if the run keeps an average."""
    return state.params if state.ema is None else state.ema


def check_rules(config: RunConfig, metrics: Mapping[str, Collection[str]]) -> None:
    """Checks that the metrics that choose the best checkpoint and the end of the run exist.

    Args:
        config: the config.
        metrics: {evaluation: names of its metrics}; nothing is checked if the names are not known yet.

    Raises:
        UserError: the evaluation does not measure this metric.
    """
    for key, rule in (("checkpoint.best", config.checkpoint.best), ("early_stopping", config.early_stopping)):
        if rule is None:
            continue
        evaluation = rule.metric.partition("/")[0]
        found = [f"{evaluation}/{metric}" for metric in metrics.get(evaluation, ())]
        if found and rule.metric not in found:
            raise UserError(
                f"{key}.metric: got {rule.metric!r}{nearest(rule.metric, found)} (there are: {', '.join(found)})"
            )


def make_evaluator(assembly: Assembly) -> evals.Evaluator:
    """Returns the evaluations of a config, on its objective and data."""
    objective, config = assembly.program.objective, assembly.config
    length = assembly.spec.max_len

    def tokenize(texts: Sequence[str]) -> Mapping[str, np.ndarray]:
        return data.open_tokenizer(config.data).encode_rows(texts, length or 0)

    return evals.Evaluator(
        objective,
        config.evals,
        config.data,
        assembly.program.put,
        batch_size=assembly.rows_at_least(256),
        loss_fn=held_out_loss(objective, config.seed, assembly.steps),
        tokenize=tokenize if length else None,
        classes=assembly.spec.classes,
        load=functools.partial(data.load_split, spec=assembly.spec, decode=False),
    )


def make_health(assembly: Assembly) -> Callable[[State], dict[str, jax.Array]]:
    """Returns a function state -> `collapse` on one batch."""
    objective, batch = assembly.program.objective, health_batch(assembly)
    health = jax.jit(lambda params, extra, batch: collapse(objective, params, extra, batch))
    return lambda state: health(evaluation_params(state), state.extra, batch)


def health_batch(assembly: Assembly) -> Any:
    """Returns the rows on which `collapse` is measured: up to 256 of the first batch, without labels."""
    program, rows = assembly.program, assembly.rows_near(256)
    own = assembly.dataset.batch(0, lambda size: program.own_rows(min(rows, size)))
    return program.put_rows({k: v for k, v in own.items() if k != "label"})


def collapse(objective: Any, params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
    """Returns measures of collapse of the features of a batch: standard deviation, effective rank, uniformity."""
    pooled = objective.features(params, extra, views.centered(objective.prepare(batch)))["pooled"]
    return {
        "health/feature_std": losses.feature_std(pooled),
        "health/effective_rank": losses.effective_rank(pooled),
        "health/uniformity": losses.uniformity(pooled),
    }
