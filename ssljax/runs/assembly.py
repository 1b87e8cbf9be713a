"""From a checked config to the data and the program of a run, before any array exists."""

import dataclasses
import math

import jax
from jax.sharding import Mesh

from ssljax import data, evals, objectives, parallel
from ssljax.base import durations
from ssljax.base.errors import UserError
from ssljax.config import RunConfig
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program, batch_shapes


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A run before its first step.

    Attributes:
        config: checked.
        dataset: opened; batches are a function of the step.
        program: initialisation and step on a mesh.
        steps: length of the run.
    """

    config: RunConfig
    dataset: data.Dataset
    program: Program
    steps: int

    def rows_near(self, count: int) -> int:
        """The largest number of rows up to `count` and the batch size that the devices share evenly."""
        devices = devices_per_batch(self.program.mesh)
        return max(devices, min(count, self.config.batch_size) // devices * devices)

    def rows_at_least(self, count: int) -> int:
        """The smallest number of rows from `count` on that the devices share evenly."""
        devices = devices_per_batch(self.program.mesh)
        return -(-count // devices) * devices


def assemble(config: RunConfig, devices: list[jax.Device] | None = None) -> Assembly:
    """Opens the data and builds the program; no device is touched.

    Args:
        config: checked.
        devices: of the mesh; None: all.

    Raises:
        UserError: the parts of the config do not fit each other, the data, or the devices.
    """
    mesh = parallel.make_mesh(config.mesh, devices)
    check_batches(config, mesh)
    dataset = data.open_data(config.data, config.batch_size, config.seed)
    spec = dataset.spec
    lengths = durations.RunLengths(config.batch_size, spec.size, spec.max_len)
    steps = durations.steps(config.steps, lengths, "steps")
    lengths = dataclasses.replace(lengths, total_steps=steps)
    objective = objectives.create({"objective": config.objective, "model": config.model}, spec, steps)
    schedule = config.schedule.resolve(lengths)
    optimization = Optimization(config.optimizer, lambda step: schedule.shape(step, steps), lengths)
    shapes = batch_shapes(spec, config.batch_size)
    program = Program.build(objective, optimization, mesh, shapes, config.microbatches, config.ema)
    return Assembly(config, dataset, program, steps)


def devices_per_batch(mesh: Mesh) -> int:
    """Number of devices that hold different rows of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batches(config: RunConfig, mesh: Mesh) -> None:
    """Raises UserError if a batch (of training, of a further stream, of an evaluation) is not shared evenly."""
    devices = devices_per_batch(mesh)
    multiple = devices * config.microbatches
    if config.batch_size % multiple:
        raise UserError(
            f"batch_size: got {config.batch_size}, must be a multiple of {multiple} "
            f"({devices} devices that share the batch x {config.microbatches} microbatches)"
        )
    for name, rows in _stream_rows(config).items():
        if rows % multiple:
            raise UserError(
                f"data.streams.{name}.ratio: got {config.data.streams[name].ratio}, {rows} rows a batch; "
                f"must be a multiple of {multiple}"
            )
    for name, rows in _evaluation_rows(config).items():
        if rows % devices:
            raise UserError(
                f"evals.{name}.batch_size: got {rows}, must be a multiple of {devices} (devices that share it)"
            )


def devices_that_fit(config: RunConfig) -> list[jax.Device]:
    """As many devices of this machine as share every batch of the config evenly."""
    rows = math.gcd(config.batch_size, *_stream_rows(config).values(), *_evaluation_rows(config).values())
    devices = jax.devices()
    return devices[: max(n for n in range(1, len(devices) + 1) if rows % n == 0)]


def _stream_rows(config: RunConfig) -> dict[str, int]:
    """{stream: rows a batch}."""
    return {name: round(part.ratio * config.batch_size) for name, part in config.data.streams.items()}


def _evaluation_rows(config: RunConfig) -> dict[str, int]:
    """{evaluation: rows a batch} of the evaluations with their own batch size."""
    sizes = {name: getattr(e, "batch_size", None) for name, e in evals.build(config.evals).items()}
    return {name: size for name, size in sizes.items() if size is not None}
