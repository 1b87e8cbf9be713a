"""One run, from a config to a finished workdir: the story of training, readable from top to bottom."""

import dataclasses
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from ssljax import data, evals, losses, objectives, parallel, report
from ssljax.base import durations, hashing
from ssljax.base.errors import UserError
from ssljax.config import RunConfig, build, difference
from ssljax.objectives.base import Ctx, stream, total
from ssljax.train.checkpoint import Checkpoints
from ssljax.train.loop import fit
from ssljax.train.metrics import Progress, Speedometer, Writer
from ssljax.train.optimization import Optimization
from ssljax.train.state import State, abstract_variables, make_init, state_shardings
from ssljax.train.step import Step, make_train_step, means, pop_meters

log = logging.getLogger(__name__)

Resume = Literal["auto", "force"]


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config becomes before any array exists: the data, the objective, and pure functions on a mesh.

    init: seed -> State. step: (state, batch) -> (state, metrics). Both are plain functions, to be jitted or mapped.
    shapes: the state as shapes; shardings: where each of its leaves lives on `mesh`.
    """

    config: RunConfig
    dataset: data.Dataset
    objective: Any
    optimization: Optimization
    steps: int
    mesh: jax.sharding.Mesh
    init: Callable[[Any], State]
    step: Step
    shapes: State
    shardings: State

    def put(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A host batch as global arrays, split over the devices; ids stay on the host."""
        sharding = parallel.batch_sharding(self.mesh)
        return jax.tree.map(lambda x: jax.device_put(x, sharding), _device_part(batch))

    def jitted_init(self) -> Callable[[Any], State]:
        """Parameters are born sharded: no device ever holds more than its part."""
        return jax.jit(self.init, out_shardings=self.shardings)

    def jitted_step(self) -> Step:
        return jax.jit(self.step, donate_argnums=0, out_shardings=(self.shardings, None))

    def target(self) -> State:
        """The state as shapes with shardings: what a checkpoint is restored to."""
        return jax.tree.map(
            lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), self.shapes, self.shardings
        )


def assemble(config: RunConfig, devices: list[jax.Device] | None = None) -> Program:
    """Everything of a run that can be built without touching a device.

    Raises:
        UserError: the parts of the config do not fit each other, the data, or the devices.
    """
    mesh = parallel.make_mesh(config.mesh, devices)
    _check_batch(config, mesh)
    dataset = data.open_data(config.data, config.batch_size, config.seed)
    spec = dataset.spec
    sizes = durations.Sizes(config.batch_size, spec.size, spec.max_len)
    steps = durations.steps(config.steps, sizes, "steps")
    sizes = dataclasses.replace(sizes, total_steps=steps)
    objective = objectives.create({"objective": config.objective, "model": config.model}, spec, steps)
    schedule = config.schedule.resolve(sizes)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _device_part(spec.zeros(config.batch_size)))

    with parallel.mesh_context(mesh):
        shapes, axes = abstract_variables(objective, batch)
        optimization = Optimization(
            config.optimizer, lambda step: schedule.shape(step, steps), sizes, axes.params, shapes.params
        )
        init = make_init(objective, optimization, batch, ema=config.ema is not None)
        step = make_train_step(objective, optimization, config.microbatches, config.ema)
        bare = jax.eval_shape(init, 0)
        meters = jax.eval_shape(step, bare, batch)[0].meters

    def init_with_meters(seed: Any) -> State:
        return init(seed).replace(meters=jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), meters))

    full = bare.replace(meters=meters)
    shardings = state_shardings(full, axes, optimization.state_axes(), mesh)
    return Program(config, dataset, objective, optimization, steps, mesh, init_with_meters, step, full, shardings)


def train(
    config: RunConfig | Mapping[str, Any], workdir: str | pathlib.Path, resume: Resume = "auto"
) -> list[dict[str, Any]]:
    """Train until the end, continuing whatever the workdir holds, then evaluate beside the controls and report.

    Args:
        config: checked, or a mapping to be checked.
        workdir: made if missing; holds config.json, data.json, metrics.jsonl, checkpoints/, evals.jsonl, report.html.
        resume: "force" continues a workdir whose config differs in what is learned.

    Returns:
        The final evaluations, a mapping for each, as written to evals.jsonl.

    Raises:
        UserError: a mistake in the config, the data or the workdir.
        Stopped: SIGTERM came; the state is saved and the same call continues.
    """
    config = config if isinstance(config, RunConfig) else build(config)
    workdir = pathlib.Path(workdir)
    program = assemble(config)
    open_workdir(workdir, config, resume)
    (workdir / "data.json").write_text(program.dataset.spec.to_json())
    if program.dataset.spec.vocab_size is not None:
        data.save_tokenizer(config.data, workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint, config.identity())

    with parallel.mesh_context(program.mesh):
        restored = checkpoints.restore(program.target())
        state, start = restored if restored else (program.jitted_init()(config.seed), 0)
        if restored:
            log.info("resumed from the checkpoint of step %d", start)
        evaluator = make_evaluator(program)
        writer = Writer(workdir, start, config.log.tensorboard)
        progress = Progress(program.steps, start, config.log.progress)
        batches = data.Prefetcher(program.dataset.batch, program.put, start, program.steps, config.data.prefetch)
        recorder = Recorder(program, writer, progress, batches, checkpoints, evaluator, workdir)
        try:
            state = fit(
                program.jitted_step(),
                state,
                batches,
                stop=program.steps,
                callbacks=recorder.callbacks(),
                on_stop=recorder.save,
                stall_seconds=config.log.stall_seconds,
            )
        finally:
            batches.close()
            progress.close()
            checkpoints.close()
            writer.close()
        return finish(program, evaluator, state, workdir)


def evaluate(
    workdir: str | pathlib.Path, names: list[str] | None = None, step: int | None = None
) -> list[dict[str, Any]]:
    """The evaluations of a finished (or running) workdir, beside their controls.

    Args:
        names: those of the config to run (all if None).
        step: the checkpoint to read (the newest if None).

    Raises:
        UserError: no workdir, no checkpoint, or unknown names.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / "config.json").is_file():
        raise UserError(f"--workdir: {str(workdir)!r} holds no config.json; it is not a workdir of `ssljax train`")
    config = build(json.loads((workdir / "config.json").read_text()))
    # Whatever mesh it was trained on: here it is this machine's devices, as many as share the batch evenly.
    count = max(n for n in range(1, jax.device_count() + 1) if config.batch_size % n == 0)
    config = dataclasses.replace(config, mesh=parallel.MeshConfig(), microbatches=1)
    program = assemble(config, jax.devices()[:count])
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint, config.identity())
    with parallel.mesh_context(program.mesh):
        restored = checkpoints.restore(program.target(), step)
        checkpoints.close()
        if restored is None:
            raise UserError(f"--workdir: {str(workdir)!r} has no checkpoint yet")
        return finish(program, make_evaluator(program), restored[0], workdir, names)


class Recorder:
    """What happens between steps, in this order: log, evaluate, save."""

    def __init__(
        self,
        program: Program,
        writer: Writer,
        progress: Progress,
        batches: data.Prefetcher,
        checkpoints: Checkpoints,
        evaluator: evals.Evaluator,
        workdir: pathlib.Path,
    ):
        self.program, self.writer, self.progress, self.batches = program, writer, progress, batches
        self.checkpoints, self.evaluator, self.workdir = checkpoints, evaluator, workdir
        config = program.config
        spec = program.dataset.spec
        self.speed = Speedometer(config.batch_size, spec.max_len, program.objective.flops(spec), writer.seconds)
        self.pop = jax.jit(pop_meters, donate_argnums=0, out_shardings=(program.shardings, None))
        self.health = make_health(program)
        self.latest: dict[str, float] = {}

    def callbacks(self) -> list[tuple[int, Any]]:
        config = self.program.config
        calls: list[tuple[int, Any]] = [(config.log.every_steps, self.log)]
        due: dict[int, list[str]] = {}
        for name, evaluation in self.evaluator.evaluations.items():
            if evaluation.every_steps:
                due.setdefault(evaluation.every_steps, []).append(name)
        calls += [(every, lambda step, state, n=names: self.evaluate(step, state, n)) for every, names in due.items()]
        return [*calls, (config.checkpoint.every_steps or self.program.steps, self.save)]

    def log(self, step: int, state: State) -> State:
        state, numbers = self.pop(state)
        values: dict[str, Any] = {k: float(v) for k, v in jax.device_get({**numbers, **self.health(state)}).items()}
        skipped, streak = int(values.pop("guard/skipped")), int(values.pop("guard/streak"))
        last = int(values.pop("guard/last"))
        if skipped:
            values["skipped_steps"] = skipped
        if self.program.config.log.batch_hash:
            values["batch_hash"] = hashing.digest(self.program.dataset.ids(step - 1).tolist())
        values |= self.speed.read(step, self.batches.wait_seconds)
        self.writer.write(step, values)
        self.progress.update(step, values)
        limit = self.program.config.log.skipped_in_a_row
        if streak >= limit:
            ids = self.program.dataset.ids(last)[:8].tolist()
            raise UserError(
                f"loss: {streak} steps in a row were not finite (limit log.skipped_in_a_row = {limit}); the last one, "
                f"step {last}, saw the examples with ids {ids} ...; lower optimizer.learning_rate or look at these"
            )
        if streak:
            log.warning("step %d was not finite and left no trace; %d such steps in a row", last, streak)
        return state

    def evaluate(self, step: int, state: State, names: list[str]) -> None:
        began = time.perf_counter()
        results = self.evaluator.run(evaluated(state), state.extra, names)
        write_evals(self.workdir, self.evaluator.records(step, results))
        for name, metrics in results.items():
            flat = {f"{name}/{metric}": float(value) for metric, value in metrics.items()}
            self.latest |= flat
            self.writer.scalars(step, flat)
        self.speed.pause(time.perf_counter() - began)

    def save(self, step: int, state: State) -> None:
        began = time.perf_counter()
        self.checkpoints.save(state, step, self.latest)
        self.speed.pause(time.perf_counter() - began)


def finish(
    program: Program, evaluator: evals.Evaluator, state: State, workdir: pathlib.Path, names: list[str] | None = None
) -> list[dict[str, Any]]:
    """Evaluate beside the untrained encoder and raw input, print the table, draw the report."""
    step = int(state.step)
    lines = evaluator.records(step, evaluator.run(evaluated(state), state.extra, names))
    untrained = program.jitted_init()(program.config.seed)
    for control, results in evaluator.controls(untrained.params, untrained.extra, names).items():
        lines += evaluator.records(step, results, of=control)
    write_evals(workdir, lines)
    if lines:
        _print_table(report.evaluation_table(lines))
    probes = [name for name, evaluation in evaluator.evaluations.items() if evaluation.wanted()]
    if probes:
        embedding: dict[str, Any] = dict(evaluator.embedding(evaluated(state), state.extra, probes[0]))
        if embedding:
            np.savez(workdir / "embedding.npz", **embedding)
    print(f"report: {report.write_report(workdir)}")
    return lines


def open_workdir(workdir: pathlib.Path, config: RunConfig, resume: Resume) -> None:
    """Make the workdir, or check that it holds this very run, and write the config.

    Raises:
        UserError: it holds another run (with the keys that differ), unless `resume` is "force".
    """
    path = workdir / "config.json"
    if path.is_file():
        before = build(json.loads(path.read_text()))
        changed = difference(before.identity(), config.identity())
        if changed and resume != "force":
            shown = "; ".join(changed[:8]) + (f"; and {len(changed) - 8} more" if len(changed) > 8 else "")
            raise UserError(
                f"--workdir: {str(workdir)!r} holds another run ({shown}); take a new folder, or --resume=force"
            )
        for line in difference(before.to_dict(), config.to_dict()):
            log.info("changed since the last start: %s", line)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = workdir / "config.json.tmp"
        temporary.write_text(json.dumps(config.to_dict(), indent=2))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"--workdir: cannot write {str(workdir)!r}: {error.strerror}") from error


def make_evaluator(program: Program) -> evals.Evaluator:
    """The evaluations of a config on its objective and data."""
    objective, config = program.objective, program.config
    devices = program.mesh.shape["data"] * program.mesh.shape["fsdp"]

    def loss_fn(params: Any, extra: Any, batch: Any, number: Any) -> dict[str, jax.Array]:
        """The training loss with a fixed key and without dropout."""
        seed = jnp.uint32(config.seed)
        inputs = objective.views(stream(seed, number, "eval_views"), objective.prepare(batch), number)
        rows = jnp.arange(jax.tree.leaves(inputs)[0].shape[0], dtype=jnp.int32)
        ctx = Ctx(stream(seed, number, "eval_encode"), jnp.int32(program.steps), rows, train=False)
        loss = objective.loss(params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx)
        return {"loss": total(loss.terms), **means(loss.metrics)}

    length = program.dataset.spec.max_len

    def tokenize(texts: Sequence[str]) -> Mapping[str, np.ndarray]:
        return data.open_tokenizer(config.data).encode_rows(texts, length or 0)

    return evals.Evaluator(
        objective,
        config.evals,
        config.data,
        program.put,
        batch_size=-(-256 // devices) * devices,
        loss_fn=jax.jit(loss_fn),
        tokenize=tokenize if length else None,
    )


def make_health(program: Program) -> Callable[[State], dict[str, jax.Array]]:
    """Numbers that show a collapse before the loss does, on one batch: feature std, effective rank, uniformity."""
    batch = program.put(program.dataset.batch(0))
    batch.pop("label", None)

    @jax.jit
    def health(params: Any, extra: Any) -> dict[str, jax.Array]:
        pooled = program.objective.features(params, extra, program.objective.prepare(batch))["pooled"][:256]
        return {
            "health/feature_std": losses.feature_std(pooled),
            "health/effective_rank": losses.effective_rank(pooled),
            "health/uniformity": losses.uniformity(pooled),
        }

    return lambda state: health(evaluated(state), state.extra)


def evaluated(state: State) -> Any:
    """The parameters that evaluations use: the averaged ones where they are kept."""
    return state.params if state.ema is None else state.ema


def write_evals(workdir: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to evals.jsonl in the place of earlier ones on the same evaluation, subject and step."""
    path = workdir / "evals.jsonl"
    new = {(line["step"], line["eval"], line["of"]) for line in lines}
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [line for line in old if (line["step"], line["eval"], line["of"]) not in new]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in [*kept, *lines]))
    os.replace(temporary, path)


def _check_batch(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % (devices * config.microbatches):
        raise UserError(
            f"batch_size: got {config.batch_size}, must be a multiple of {devices * config.microbatches} "
            f"({devices} devices that share the batch x {config.microbatches} microbatches)"
        )


def _device_part(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without what stays on the host."""
    return {k: _device_part(v) if isinstance(v, Mapping) else v for k, v in batch.items() if k != "id"}


def _print_table(table: report.Table) -> None:
    shown = rich.table.Table(*table.columns)
    for row in table.rows:
        shown.add_row(*row)
    console = rich.console.Console()
    console.print(shown)
    for note in table.notes:
        console.print(note)
