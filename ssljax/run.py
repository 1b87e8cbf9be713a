"""One run, from a config to a finished workdir: the story of training, readable from top to bottom."""

import contextlib
import dataclasses
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from ssljax import data, evals, losses, objectives, parallel, report
from ssljax.base import durations, hashing
from ssljax.base.errors import UserError, nearest
from ssljax.config import RunConfig, build
from ssljax.evals import generation, prompts
from ssljax.interop import hf, init_from
from ssljax.interop.workdir import read as read_workdir
from ssljax.interop.workdir import read_json
from ssljax.layers import attention
from ssljax.objectives.base import Ctx, Variables, stream, total
from ssljax.train.checkpoint import Best, Checkpoints
from ssljax.train.loop import Signals, fit
from ssljax.train.metrics import Progress, Speedometer, Writer
from ssljax.train.optimization import Optimization
from ssljax.train.state import State, abstract_variables, make_init, state_shardings
from ssljax.train.step import Step, make_train_step, means, pop_meters
from ssljax.workdir import Resume, check_workdir, hold, read_config, write_evals, write_json

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config becomes before any array exists: the data, the objective, and pure functions on a mesh.

    init: seed -> State. step: (state, batch) -> (state, metrics). Both are plain functions, to be jitted or mapped.
    shapes: the state as shapes; shardings: where each of its leaves lives on `mesh`. layout: that in a line for the
    log, of the parameters.
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
    layout: str

    def put(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A host batch as global arrays, split over the devices; ids stay on the host."""
        sharding = parallel.batch_sharding(self.mesh)
        return jax.tree.map(lambda x: jax.device_put(x, sharding), data.device_batch(batch))

    def rows_for(self, wanted: int, at_least: bool = False) -> int:
        """The number of rows nearest to `wanted` that the devices share evenly and (unless `at_least`) a batch has."""
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if at_least:
            return -(-wanted // devices) * devices
        return max(devices, min(wanted, self.config.batch_size) // devices * devices)

    def jitted_init(self) -> Callable[[Any], State]:
        """Parameters are born sharded: no device ever holds more than its part."""
        return jax.jit(self.init, out_shardings=self.shardings)

    def jitted_variables(self) -> Callable[[Any], Any]:
        """seed -> the initial (params, extra) alone: the untrained control."""

        def variables(seed: Any) -> Variables:
            state = self.init(seed)
            return Variables(state.params, state.extra)

        return jax.jit(variables, out_shardings=Variables(self.shardings.params, self.shardings.extra))

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
    lengths = durations.RunLengths(config.batch_size, spec.size, spec.max_len)
    steps = durations.steps(config.steps, lengths, "steps")
    lengths = dataclasses.replace(lengths, total_steps=steps)
    objective = objectives.create({"objective": config.objective, "model": config.model}, spec, steps)
    schedule = config.schedule.resolve(lengths)
    zeros = data.device_batch(spec.zeros(config.batch_size))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), zeros)

    with parallel.mesh_context(mesh):
        shapes, axes = abstract_variables(objective, batch)
        optimization = Optimization(
            config.optimizer, lambda step: schedule.shape(step, steps), lengths, axes.params, shapes.params
        )
        init = make_init(objective, optimization, batch, ema=config.ema is not None)
        step = make_train_step(objective, optimization, config.microbatches, config.ema)
        bare = jax.eval_shape(init, 0)
        meters = jax.eval_shape(step, bare, batch)[0].meters

    def init_with_meters(seed: Any) -> State:
        return init(seed).replace(meters=jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), meters))

    full = bare.replace(meters=meters)
    shardings = state_shardings(full, axes, optimization.state_axes(), mesh)
    layout = parallel.sharding_report(axes.params, shapes.params, mesh)
    return Program(
        config, dataset, objective, optimization, steps, mesh, init_with_meters, step, full, shardings, layout
    )


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
    spec = program.dataset.spec
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        stack.enter_context(parallel.mesh_context(program.mesh))
        stack.enter_context(hold(workdir))
        check_workdir(workdir, config, spec, resume)
        evaluator = make_evaluator(program)
        known = evaluator.check(program.shapes.params, program.shapes.extra)
        check_best(config.checkpoint.best, known)
        program.dataset.batch(0)  # what is wrong with the data is told before anything is compiled
        checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint, config.identity())
        stack.callback(checkpoints.close)
        restored = checkpoints.restore(program.target(), force=resume == "force")
        if restored and restored[1] > program.steps:
            raise UserError(
                f"steps: got {program.steps}, but {str(workdir)!r} has a checkpoint of step {restored[1]} already"
            )
        attention.log_choices()
        if program.mesh.size > 1:
            log.info("parameters: %s", program.layout)
        state, start = restored if restored else (begin(program, workdir), 0)
        if restored:
            log.info("resumed from the checkpoint of step %d", start)
        write_json(workdir / "config.json", config.to_dict())
        write_json(workdir / "data.json", json.loads(spec.to_json()))
        if spec.vocab_size is not None:
            data.save_tokenizer(config.data, workdir)

        writer = Writer(workdir, start, config.log.tensorboard)
        stack.callback(writer.close)
        progress = Progress(program.steps, start, config.log.progress)
        stack.callback(progress.close)
        batches = data.Prefetcher(program.dataset.batch, program.put, start, program.steps, config.data.prefetch)
        stack.callback(batches.close)
        recorder = Recorder(program, writer, progress, batches, checkpoints, evaluator, workdir, signals)
        state = fit(
            program.jitted_step(),
            state,
            batches,
            stop=program.steps,
            callbacks=recorder.callbacks(),
            on_stop=recorder.save,
            signals=signals,
            stall_seconds=config.log.stall_seconds,
        )
        progress.close()
        checkpoints.wait()
        signals.saved(program.steps)
        return finish(program, evaluator, state, workdir, results=recorder.results.get(program.steps))


def begin(program: Program, workdir: pathlib.Path) -> State:
    """The state before the first step: initial values, and in their place what `init_from` finds.

    Raises:
        UserError: `init_from` names nothing that fits.
    """
    config = program.config
    if config.init_from is None:
        (workdir / "init_from.json").unlink(missing_ok=True)  # perhaps of an earlier start
        return program.jitted_init()(config.seed)
    # What is wrong with it is told before anything is compiled.
    source = init_from.open_source(config.init_from, program.mesh)
    values, taken = init_from.take(config.init_from, source, program.objective, program.shapes.params)
    for line in taken.lines():
        log.info("init_from: %s", line)
    write_json(workdir / "init_from.json", dataclasses.asdict(taken))
    return init_from.put(values, program.jitted_init()(config.seed), program.optimization.init)


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
    with restored(workdir, step) as (program, state):
        evaluator = make_evaluator(program)
        evaluator.check(program.shapes.params, program.shapes.extra, names)
        return finish(program, evaluator, state, workdir, names)


@contextlib.contextmanager
def restored(workdir: pathlib.Path, step: int | None = None) -> Iterator[tuple[Program, State]]:
    """The program of a workdir, its state at a checkpoint (the newest if None), and the context of its mesh.

    Raises:
        UserError: no checkpoint.
    """
    config = read_config(workdir)
    # Whatever mesh it was trained on: here it is this machine's devices, as many as share every batch evenly.
    rows = math.gcd(config.batch_size, *_stream_rows(config).values(), *_evaluation_rows(config).values())
    count = max(n for n in range(1, jax.device_count() + 1) if rows % n == 0)
    config = dataclasses.replace(config, mesh=parallel.MeshConfig(), microbatches=1)
    program = assemble(config, jax.devices()[:count])
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint, config.identity(), read_only=True)
    with parallel.mesh_context(program.mesh):
        found = checkpoints.restore(program.target(), step, force=True)
        checkpoints.close()
        if found is None:
            raise UserError(f"--workdir: {str(workdir)!r} has no checkpoint yet")
        attention.log_choices()
        yield program, found[0]


def language_model(folder: str | pathlib.Path, step: int | None = None) -> prompts.LanguageModel:
    """The model of a workdir (at a checkpoint; the newest if None) or of a folder in the Hugging Face format.

    Raises:
        UserError: neither of both, or it reads no text.
    """
    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: holds no config.json; it is neither a workdir nor in the Hugging Face format")
    mesh = parallel.make_mesh(parallel.MeshConfig(data=1, fsdp=-1))
    if "model_type" in read_json(folder / "config.json"):
        if step is not None:
            raise UserError(f"--step: got {step}, but {str(folder)!r} is no workdir and has no checkpoints")
        return prompts.imported(hf.load(folder, mesh=mesh), mesh)
    return prompts.trained(read_workdir(folder, step, mesh), mesh)


def generate(
    folder: str | pathlib.Path,
    texts: Sequence[str],
    sampling: generation.Sampling | None = None,
    *,
    stop: Sequence[str] = (),
    seed: int = 0,
    step: int | None = None,
) -> list[str]:
    """What the model of a folder (see `language_model`) writes after each text; see `evals.prompts.complete`."""
    return prompts.complete(language_model(folder, step), texts, sampling, jax.random.key(seed), stop)


def fill_mask(
    folder: str | pathlib.Path, texts: Sequence[str], top: int = 5, step: int | None = None
) -> list[list[list[prompts.Guess]]]:
    """What the model of a folder (see `language_model`) puts in the place of masks; see `evals.prompts.fill`."""
    return prompts.fill(language_model(folder, step), texts, top)


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
        signals: Signals,
    ):
        self.program, self.writer, self.progress, self.batches = program, writer, progress, batches
        self.checkpoints, self.evaluator, self.workdir, self.signals = checkpoints, evaluator, workdir, signals
        config = program.config
        spec = program.dataset.spec
        self.speed = Speedometer(config.batch_size, spec.max_len, program.objective.flops(spec), writer.seconds)
        self.pop = jax.jit(pop_meters, donate_argnums=0, out_shardings=(program.shardings, None))
        self.health = make_health(program)
        self.results: dict[int, dict[str, dict[str, float]]] = {}  # of the newest evaluated step

    def callbacks(self) -> list[tuple[int, Any]]:
        config = self.program.config
        calls: list[tuple[int, Any]] = [(config.log.every_steps, self.log)]
        every = [e.every_steps for e in self.evaluator.evaluations.values() if e.every_steps]
        if every:
            calls.append((math.gcd(*every), self.evaluate))
        return [*calls, (config.checkpoint.every_steps or self.program.steps, self.save)]

    def log(self, step: int, state: State) -> State:
        state, numbers = self.pop(state)
        values: dict[str, Any] = {k: float(v) for k, v in jax.device_get({**numbers, **self.health(state)}).items()}
        skipped, streak = int(values.pop("guard/skipped")), int(values.pop("guard/longest"))
        values.pop("guard/streak")
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

    def evaluate(self, step: int, state: State) -> None:
        last = step == self.program.steps  # what runs at the end is run here, where the checkpoint can be judged by it
        named = self.evaluator.evaluations.items()
        names = [name for name, e in named if last or (e.every_steps and step % e.every_steps == 0)]
        if not names or self.signals.received:  # asked to stop: there is time to save, not to evaluate
            return
        jax.block_until_ready(state.step)  # steps under way are not the evaluation's time
        began = time.perf_counter()
        results = self.evaluator.run(evaluated(state), state.extra, names)
        write_evals(self.workdir, self.evaluator.records(step, results))
        measured = {name: found for name, found in results.items() if np.isfinite(list(found.values())).any()}
        check_best(self.program.config.checkpoint.best, measured)  # a diverged model has its headline only
        self.results = {step: results}
        self.writer.scalars(step, _flat(results))
        self.speed.pause(time.perf_counter() - began)

    def save(self, step: int, state: State) -> None:
        jax.block_until_ready(state.step)
        began = time.perf_counter()
        self.checkpoints.save(state, step, _flat(self.results.get(step, {})))
        self.speed.pause(time.perf_counter() - began)


def _flat(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{"knn": {"accuracy": x}} -> {"knn/accuracy": x}."""
    return {f"{name}/{metric}": float(v) for name, metrics in results.items() for metric, v in metrics.items()}


def finish(
    program: Program,
    evaluator: evals.Evaluator,
    state: State,
    workdir: pathlib.Path,
    names: list[str] | None = None,
    results: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate beside the untrained encoder and raw input, print the table, draw the report.

    `results` are those of the trained model where they are known already.
    """
    step = int(state.step)
    state = state.replace(opt_state=None)  # room for the untrained control
    lines = evaluator.records(step, results or evaluator.run(evaluated(state), state.extra, names))
    write_evals(workdir, lines)  # before the controls, which may fail
    untrained = program.jitted_variables()(program.config.seed)
    for control, found in evaluator.controls(untrained.params, untrained.extra, names).items():
        lines += evaluator.records(step, found, of=control)
    write_evals(workdir, lines)
    if lines:
        _print_table(report.evaluation_table(lines))
    probes = [name for name, evaluation in evaluator.evaluations.items() if evaluation.feature_names()]
    if probes:
        embedding: dict[str, Any] = dict(evaluator.embedding(evaluated(state), state.extra, probes[0]))
        if embedding:
            np.savez(workdir / "embedding.npz", **embedding)
    print(f"report: {report.write_report(workdir)}")
    return lines


def check_best(best: Best | None, metrics: Mapping[str, Collection[str]]) -> None:
    """Refuse a best checkpoint by a metric that is not there.

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


def make_evaluator(program: Program) -> evals.Evaluator:
    """The evaluations of a config on its objective and data."""
    objective, config = program.objective, program.config

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
        batch_size=program.rows_for(256, at_least=True),
        loss_fn=jax.jit(loss_fn),
        tokenize=tokenize if length else None,
    )


def make_health(program: Program) -> Callable[[State], dict[str, jax.Array]]:
    """Numbers that show a collapse before the loss does, on one batch: feature std, effective rank, uniformity."""
    rows = program.rows_for(256)
    host = jax.tree.map(lambda x: x[:rows], {k: v for k, v in program.dataset.batch(0).items() if k != "label"})
    batch = program.put(host)

    @jax.jit
    def health(params: Any, extra: Any, batch: Any) -> dict[str, jax.Array]:
        pooled = program.objective.features(params, extra, program.objective.prepare(batch))["pooled"]
        return {
            "health/feature_std": losses.feature_std(pooled),
            "health/effective_rank": losses.effective_rank(pooled),
            "health/uniformity": losses.uniformity(pooled),
        }

    return lambda state: health(evaluated(state), state.extra, batch)


def evaluated(state: State) -> Any:
    """The parameters that evaluations use: the averaged ones where they are kept."""
    return state.params if state.ema is None else state.ema


def _check_batch(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % (devices * config.microbatches):
        raise UserError(
            f"batch_size: got {config.batch_size}, must be a multiple of {devices * config.microbatches} "
            f"({devices} devices that share the batch x {config.microbatches} microbatches)"
        )
    for name, rows in _stream_rows(config).items():
        if rows % (devices * config.microbatches):
            raise UserError(
                f"data.streams.{name}.ratio: got {config.data.streams[name].ratio}, {rows} rows a batch; "
                f"must be a multiple of {devices * config.microbatches}"
            )
    for name, rows in _evaluation_rows(config).items():
        if rows % devices:
            raise UserError(
                f"evals.{name}.batch_size: got {rows}, must be a multiple of {devices} (devices that share it)"
            )


def _stream_rows(config: RunConfig) -> dict[str, int]:
    """{stream: rows a batch}."""
    return {name: round(part.ratio * config.batch_size) for name, part in config.data.streams.items()}


def _evaluation_rows(config: RunConfig) -> dict[str, int]:
    """{evaluation: rows a batch} of those with a batch size of their own."""
    lengths = {name: getattr(e, "batch_size", None) for name, e in evals.build(config.evals).items()}
    return {name: size for name, size in lengths.items() if size is not None}


def _print_table(table: report.Table) -> None:
    shown = rich.table.Table(*table.columns)
    for row in table.rows:
        shown.add_row(*row)
    console = rich.console.Console()
    console.print(shown)
    for note in table.notes:
        console.print(note)
