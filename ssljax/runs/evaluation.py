"""Evaluations of a run: during training, at its end, and again from its workdir."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import data, evals, losses, parallel, report
from ssljax.base.errors import UserError, nearest
from ssljax.layers import attention
from ssljax.objectives.base import Ctx, stream, total
from ssljax.runs.assembly import Assembly, assemble, devices_that_fit
from ssljax.runs.workdir import Workdir
from ssljax.train.checkpoint import Best, Checkpoints
from ssljax.train.state import State
from ssljax.train.step import means


def evaluate(
    workdir: str | pathlib.Path, names: list[str] | None = None, step: int | None = None
) -> list[dict[str, Any]]:
    """Evaluates a finished (or running) workdir, together with its controls.

    Args:
        workdir: the folder of the run.
        names: evaluations of its config; None: all.
        step: number of the checkpoint; None: the newest.

    Returns:
        The lines that were added to evals.jsonl.

    Raises:
        UserError: no workdir, no checkpoint, or an unknown name.
    """
    folder = Workdir(workdir)
    with open_run(folder, step) as (assembly, state):
        evaluator = make_evaluator(assembly)
        evaluator.check(assembly.program.shapes.params, assembly.program.shapes.extra, names)
        return evaluate_and_report(assembly, evaluator, state, folder, names)


@contextlib.contextmanager
def open_run(workdir: Workdir, step: int | None = None) -> Iterator[tuple[Assembly, State]]:
    """The run of a workdir, its state at a checkpoint (None: the newest), and the context of its mesh.

    Raises:
        UserError: no workdir, or no checkpoint.
    """
    config = workdir.config()
    # The mesh of training does not matter: this machine may have other devices.
    devices = devices_that_fit(config)
    config = dataclasses.replace(config, mesh=parallel.MeshConfig(), microbatches=1)
    assembly = assemble(config, devices)
    checkpoints = Checkpoints(workdir.checkpoints, config.checkpoint, config.identity(), read_only=True)
    with parallel.mesh_context(assembly.program.mesh):
        found = checkpoints.restore(assembly.program.target(), step, force=True)
        checkpoints.close()
        if found is None:
            raise UserError(f"--workdir: {str(workdir.path)!r} has no checkpoint yet")
        attention.log_choices()
        yield assembly, found[0]


def evaluate_and_report(
    assembly: Assembly,
    evaluator: evals.Evaluator,
    state: State,
    workdir: Workdir,
    names: list[str] | None = None,
    results: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Evaluates the model, the untrained encoder and raw input, prints the table and draws the report.

    Args:
        results: of the trained model, if they were measured at this step already.

    Returns:
        The lines that were added to evals.jsonl.
    """
    step, program = int(state.step), assembly.program
    state = state.replace(opt_state=None)  # frees memory for the untrained control
    lines = evaluator.records(step, results or evaluator.run(evaluation_params(state), state.extra, names))
    workdir.write_evaluations(lines)  # before the controls, which may fail
    untrained = program.jitted_variables()(assembly.config.seed)
    for control, found in evaluator.controls(untrained.params, untrained.extra, names).items():
        lines += evaluator.records(step, found, of=control)
    workdir.write_evaluations(lines)
    if lines:
        report.print_table(report.evaluation_table(lines))
    probes = [name for name, evaluation in evaluator.evaluations.items() if evaluation.feature_names()]
    if probes:
        embedding: dict[str, Any] = dict(evaluator.embedding(evaluation_params(state), state.extra, probes[0]))
        if embedding:
            workdir.write_embedding(embedding)
    print(f"report: {workdir.write_report()}")
    return lines


def evaluation_params(state: State) -> Any:
    """The parameters that evaluations use: the averaged ones if they are kept."""
    return state.params if state.ema is None else state.ema


def check_best(best: Best | None, metrics: Mapping[str, Collection[str]]) -> None:
    """Refuses a best checkpoint by a metric that does not exist.

    Args:
        best: how it is chosen.
        metrics: {evaluation: names of its metrics}, as far as they are known.

    Raises:
        UserError: its evaluation has metrics, and this is none of them.
    """
    if best is None:
        return
    evaluation = best.metric.partition("/")[0]
    found = [f"{evaluation}/{metric}" for metric in metrics.get(evaluation, ())]
    if found and best.metric not in found:
        raise UserError(
            f"checkpoint.best.metric: got {best.metric!r}{nearest(best.metric, found)} (there are: {', '.join(found)})"
        )


def make_evaluator(assembly: Assembly) -> evals.Evaluator:
    """The evaluations of a config on its objective and data."""
    objective, config = assembly.program.objective, assembly.config

    def held_out_loss(params: Any, extra: Any, batch: Any, number: Any) -> dict[str, jax.Array]:
        """The training loss with a fixed key and without dropout."""
        seed = jnp.uint32(config.seed)
        inputs = objective.views(stream(seed, number, "eval_views"), objective.prepare(batch), number)
        rows = jnp.arange(jax.tree.leaves(inputs)[0].shape[0], dtype=jnp.int32)
        ctx = Ctx(stream(seed, number, "eval_encode"), jnp.int32(assembly.steps), rows, train=False)
        loss = objective.loss(params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx)
        return {"loss": total(loss.terms), **means(loss.metrics)}

    length = assembly.dataset.spec.max_len

    def tokenize(texts: Sequence[str]) -> Mapping[str, np.ndarray]:
        return data.open_tokenizer(config.data).encode_rows(texts, length or 0)

    return evals.Evaluator(
        objective,
        config.evals,
        config.data,
        assembly.program.put,
        batch_size=assembly.rows_at_least(256),
        loss_fn=jax.jit(held_out_loss),
        tokenize=tokenize if length else None,
    )


def make_health(assembly: Assembly) -> Callable[[State], dict[str, jax.Array]]:
    """Returns a function of the state that measures collapse on one batch: feature std, effective rank, uniformity."""
    objective, rows = assembly.program.objective, assembly.rows_near(256)
    host = {k: v for k, v in assembly.dataset.batch(0).items() if k != "label"}
    batch = assembly.program.put(jax.tree.map(lambda x: x[:rows], host))

    @jax.jit
    def health(params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
        pooled = objective.features(params, extra, objective.prepare(batch))["pooled"]
        return {
            "health/feature_std": losses.feature_std(pooled),
            "health/effective_rank": losses.effective_rank(pooled),
            "health/uniformity": losses.uniformity(pooled),
        }

    return lambda state: health(evaluation_params(state), state.extra, batch)
