"""Assembly of a run: its data and program from a checked config, before any array is allocated."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
from jax.sharding import Mesh

from ssljax import data, evals, objectives, parallel
from ssljax.base import durations, schema
from ssljax.base.errors import UserError
from ssljax.config import RunConfig
from ssljax.parallel import MeshConfig, presets
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program, batch_shapes, variable_shapes, with_shardings
from ssljax.train.state import settings_of, with_hyper

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A run before its first step.

    Attributes:
        config: the checked config, with the tokenizer as it is now.
        spec: description of the training data.
        program: initialisation and training step on a mesh.
        steps: length of the run.
        open_data: opens the training data; see `dataset`.
    """

    config: RunConfig
    spec: data.DataSpec
    program: Program
    steps: int
    open_data: Callable[[], data.Dataset]

    @property
    def dataset(self) -> data.Dataset:
        """The training data, opened once; a batch is a function of the step."""
        return self.open_data()

    def batch_target(self) -> Any:
        """Returns the shapes of a global batch with their shardings."""
        shapes = batch_shapes(self.spec, self.config.batch_size)
        sharding = parallel.batch_sharding(self.program.mesh)
        return with_shardings(shapes, jax.tree.map(lambda _: sharding, shapes))

    def rows_near(self, count: int) -> int:
        """Returns a number of rows that the devices share evenly: as large as possible up to `count` and a batch."""
        devices = parallel.batch_devices(self.program.mesh)
        return max(devices, min(count, self.config.batch_size) // devices * devices)

    def rows_at_least(self, count: int) -> int:
        """Returns a number of rows that the devices share evenly: as small as possible from `count` on."""
        devices = parallel.batch_devices(self.program.mesh)
        return -(-count // devices) * devices


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a run of which its program is built; nothing is traced yet.

    Attributes:
        config: the checked config, with the tokenizer as it is now.
        spec: description of the training data.
        steps: length of the run.
        objective: the objective, with its model.
        optimization: rule, schedule and lengths.
        mesh: the mesh.
        open_data: opens the training data, once.
    """

    config: RunConfig
    spec: data.DataSpec
    steps: int
    objective: Any
    optimization: Optimization
    mesh: Mesh
    open_data: Callable[[], data.Dataset]

    def program(self, varied: Collection[str] = ()) -> Program:
        """Returns the program, traced; one that a recent run of this process has built is used again.

        Args:
            varied: settings such as "optimizer.learning_rate" that are arrays of the state, `State.hyper`. The program
                does not depend on their values.

        Raises:
            UserError: settings of the optimisation do not fit the parameters.
        """
        hyper = dict.fromkeys(varied, 0.0)
        return _program(
            objective=with_hyper(self.objective, hyper),
            optimization=self.optimization.with_settings(settings_of("optimizer", hyper)),
            mesh=self.mesh,
            batch_shapes=batch_shapes(self.spec, self.config.batch_size),
            microbatches=self.config.microbatches,
            ema=self.config.ema,
            hyper=hyper,
            deterministic=self.config.deterministic,
            shard=self.config.mesh.shard,
        )

    def assembly(self, program: Program) -> Assembly:
        """Returns the run with its program.

        Raises:
            UserError: the devices hold more of the parameters whole than `mesh.whole` allows.
        """
        parallel.check_whole(self.config.mesh.whole, program.axes.params, program.shapes.params, self.mesh)
        return Assembly(self.config, self.spec, program, self.steps, self.open_data)


def assemble(config: RunConfig, devices: list[jax.Device] | None = None, spec: data.DataSpec | None = None) -> Assembly:
    """Opens the data and builds the program; nothing is computed on a device.

    Args:
        config: the checked config.
        devices: devices of the mesh; None: all.
        spec: description of the data of a finished run, whose training data are then not opened; None: they are opened
            and described.

    Raises:
        UserError: the parts of the config do not fit each other, the data, or the devices.
    """
    parts = parts_of(config, devices, spec)
    return parts.assembly(parts.program())


def parts_of(config: RunConfig, devices: list[jax.Device] | None = None, spec: data.DataSpec | None = None) -> Parts:
    """Opens the data and makes the parts of the program; arguments and errors are those of `assemble`."""
    if config.mesh.preset is None:  # mistakes in the mesh are reported before the data are opened
        check_batches(config, parallel.make_mesh(config.mesh, devices))
    if spec is None:
        config = dataclasses.replace(config, data=data.pin_tokenizer(config.data))
    data_config = config.data
    open_data = functools.cache(lambda: data.open_data(data_config, config.batch_size, config.seed))
    spec = spec or open_data().spec
    config = with_preset(config, jax.devices() if devices is None else devices, spec)
    mesh = parallel.make_mesh(config.mesh, devices)
    check_batches(config, mesh)
    lengths = durations.RunLengths(config.batch_size, spec.size, spec.max_len)
    steps = durations.steps(config.steps, lengths, "steps")
    lengths = dataclasses.replace(lengths, total_steps=steps)
    objective = objectives.create({"objective": config.objective, "model": config.model}, spec, steps)
    optimization = Optimization(config.optimizer, Multiplier(config.schedule.resolve(lengths), steps), lengths)
    return Parts(config, spec, steps, objective, optimization, mesh, open_data)


def with_preset(config: RunConfig, devices: list[jax.Device], spec: data.DataSpec) -> RunConfig:
    """Returns the config with the keys that `mesh.preset` fills in; only keys that have their defaults are changed.

    Raises:
        UserError: there is no preset for the devices.
    """
    if config.mesh.preset is None:
        return config
    model, mesh = config.model, config.mesh
    if -1 in (mesh.tensor, mesh.context, mesh.expert):
        raise UserError(
            "mesh.preset: the axes tensor, context and expert must have numbers, since it fills data and fsdp"
        )
    count = max(1, len(devices) // (mesh.tensor * mesh.context * mesh.expert))
    hosts = len({device.process_index for device in devices})
    free = (mesh.data, mesh.fsdp) == (MeshConfig().data, MeshConfig().fsdp)
    remat = _defaults(model).get("remat")
    given = presets.Given(
        fsdp=None if free else mesh.fsdp if mesh.fsdp > 0 else count // mesh.data,
        remat=None if remat is None or model.remat == remat else model.remat,
        microbatches=None if config.microbatches == 1 else config.microbatches,
    )
    kind = devices[0].device_kind
    choice = presets.choose(kind, count, max(1, count // hosts), _sizes(config, spec), given)
    filled: dict[str, Any] = {}
    if free:
        filled = {"mesh.data": choice.data, "mesh.fsdp": choice.fsdp}
        mesh = dataclasses.replace(mesh, data=choice.data, fsdp=choice.fsdp)
    if remat is not None and given.remat is None:
        filled["model.remat"] = choice.remat
        model = schema.replace(model, remat=choice.remat)
    if given.microbatches is None:
        filled["microbatches"] = choice.microbatches
    words = ", ".join(f"{key}={value}" for key, value in filled.items()) or "nothing, all keys were given"
    log.info("%-9s %s: %s (%.1f GB expected on a device)", "preset", kind, words, choice.expected / 1e9)
    return dataclasses.replace(config, mesh=mesh, model=model, microbatches=choice.microbatches)


def _sizes(config: RunConfig, spec: data.DataSpec) -> presets.Sizes:
    """The sizes of a run for its preset, from the shapes of its parameters and the FLOPs of its model."""
    objective = objectives.create({"objective": config.objective, "model": config.model}, spec, 1)
    params = variable_shapes(objective, batch_shapes(spec, config.batch_size)).params
    depth, width = (getattr(config.model, name, None) or 0 for name in ("depth", "width"))
    flops = objective.flops(spec) or 0.0
    block = presets.block_bytes(flops / depth if depth else None, width, getattr(config.model, "dtype", None))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    split = max(1, config.mesh.tensor)
    averaged = config.ema is not None
    return presets.Sizes(parameters, averaged, config.batch_size, block / split, depth, split)


def _defaults(config: Any) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(config)}


@dataclasses.dataclass(frozen=True)
class Multiplier:
    """The function step -> learning rate as a share of the peak, of a schedule whose durations are in steps."""

    schedule: Any
    steps: int

    def __call__(self, step: jax.Array) -> jax.Array:
        return self.schedule.shape(step, self.steps)


_RECENT = 2  # programs that are kept for further runs of this process
_recent: list[tuple[dict[str, Any], Program]] = []


def _program(**parts: Any) -> Program:
    """Returns `Program.build(**parts)`, or the program of a recent run whose parts are equal: it is compiled already.

    Runs that differ in their seed, for example, or an evaluation after a run, have equal parts. A program with a class
    of the user is always built: in a notebook, what the class reads may have changed between two runs.
    """
    if not _is_of_the_library(parts["objective"], parts["optimization"]):
        return Program.build(**parts)
    for known, program in _recent:
        if known == parts:
            return program
    program = Program.build(**parts)
    _recent[:] = [*_recent[-_RECENT + 1 :], (parts, program)]
    return program


def _is_of_the_library(*parts: Any) -> bool:
    """Returns True if the classes of configuration objects, and of all objects in their fields, belong to ssljax."""
    inner = [getattr(part, field.name) for part in parts for field in dataclasses.fields(part)]
    inner = [value for value in inner if dataclasses.is_dataclass(value) and not isinstance(value, type)]
    own = all(type(part).__module__.startswith("ssljax.") for part in parts)
    return own and (not inner or _is_of_the_library(*inner))


def check_batches(config: RunConfig, mesh: Mesh) -> None:
    """Raises UserError if the devices cannot share a batch of training, a stream or an evaluation evenly."""
    devices = parallel.batch_devices(mesh)
    multiple = devices * config.microbatches
    if config.batch_size % multiple:
        raise UserError(
            f"batch_size: got {config.batch_size}, must be a multiple of {multiple} "
            f"({devices} devices that share the batch x {config.microbatches} microbatches)"
        )
    for name, rows in _stream_rows(config).items():
        if rows % multiple:
            raise UserError(
                f"data.streams.{name}.ratio: got {config.data.streams[name].ratio}, {rows} rows per batch; "
                f"must be a multiple of {multiple}"
            )
    for name, rows in _evaluation_rows(config).items():
        if rows % devices:
            raise UserError(
                f"evals.{name}.batch_size: got {rows}, must be a multiple of {devices} (devices that share it)"
            )


def devices_that_fit(config: RunConfig) -> list[jax.Device]:
    """Returns as many devices as can share every batch of the config evenly, equally many of each process.

    Raises:
        UserError: the processes cannot share a batch evenly, even with one device each.
    """
    rows = math.gcd(config.batch_size, *_stream_rows(config).values(), *_evaluation_rows(config).values())
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    processes, most = len(by_process), min(map(len, by_process.values()))
    fitting = [n for n in range(1, most + 1) if rows % (n * processes) == 0]
    if not fitting:
        raise UserError(f"batch_size: {processes} processes cannot share {rows} rows evenly; take fewer processes")
    return [device for devices in by_process.values() for device in devices[: max(fitting)]]


def _stream_rows(config: RunConfig) -> dict[str, int]:
    """Returns {stream: rows per batch}."""
    return {name: round(part.ratio * config.batch_size) for name, part in config.data.streams.items()}


def _evaluation_rows(config: RunConfig) -> dict[str, int]:
    """Returns {evaluation: rows per batch} for evaluations with a separate batch size."""
    sizes = {name: getattr(e, "batch_size", None) for name, e in evals.build(config.evals).items()}
    return {name: size for name, size in sizes.items() if size is not None}
