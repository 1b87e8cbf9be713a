"""A config in numbers, before any training: `inspect`."""

import dataclasses
import datetime
import logging
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.config import RunConfig
from ssljax.report import Table
from ssljax.runs.accounting import Cost, cost
from ssljax.runs.assembly import Assembly, assemble
from ssljax.runs.starts import StartRecord, environment
from ssljax.runs.workdir import Workdir
from ssljax.train import noise_scale

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The numbers of a run, as tables.

    Attributes:
        run: objective, model, data, length, batch, devices.
        memory: megabytes of the state: each array once, and on one device.
        parameters: shape, role, sharding and number of each parameter.
    """

    run: Table
    memory: Table
    parameters: Table


def inspect(config: RunConfig, devices: list[jax.Device] | None = None) -> Inspection:
    """Returns the numbers of a config. The data are opened and described; nothing is trained.

    Args:
        config: the checked config.
        devices: devices of the mesh; None: all.

    Raises:
        UserError: as `assemble`.
    """
    assembly = assemble(config, devices)
    return Inspection(
        Table(["run", ""], _run(assembly), []),
        Table(["memory in MB", "all arrays", "on one device"], list(_memory(assembly)), []),
        Table(["parameter", "shape", "role", "sharding", "numbers"], list(_parameters(assembly)), []),
    )


def announce(assembly: Assembly, workdir: Workdir, start: int, began: float) -> StartRecord:
    """Writes what is about to be trained, by which command, host and versions, into the log and starts.jsonl.

    Args:
        assembly: the run.
        workdir: its folder.
        start: number of steps that earlier starts completed.
        began: `time.perf_counter()` at the call of `train`.
    """
    for name, value in [*_run(assembly), ["workdir", workdir.name]]:
        log.info("%-9s %s", name, value)
    if start:
        log.info("continued from step %d", start)
    around = environment()
    for name, value in _around(around):
        log.info("%-9s %s", name, value, extra={"quiet": True})
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return StartRecord(workdir, {"time": now, "step": start, **_facts(assembly), **around}, began)


def _around(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the lines of log.txt on the environment."""
    yield "command", values["command"]
    yield "host", f"{values['host']}, {values['platform']}, Python {values['python']}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    if values["commit"]:
        yield "commit", values["commit"]


def _facts(assembly: Assembly) -> dict[str, Any]:
    """Returns the numbers of a run that config.json and data.json do not have."""
    program, found = assembly.program, cost(assembly)
    return {
        "parameters": found.total,
        "non_embedding_parameters": found.non_embedding,
        "flops": found.flops,
        "no_gradient_noise_scale": noise_scale.missing(program.objective, assembly.config.microbatches),
        "steps": assembly.steps,
        "epochs": found.epochs,
        "device_kind": program.device_kind,
        "mesh": dict(program.mesh.shape),
        "processes": jax.process_count(),
    }


def _run(assembly: Assembly) -> list[list[str]]:
    config, spec, program = assembly.config, assembly.spec, assembly.program
    rows, found = config.batch_size, cost(assembly)
    epochs = f"{found.epochs:,.2f} epochs of {spec.size / rows:,.1f} steps"
    mesh = ", ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items() if size > 1) or "one device"
    elements = ", ".join(f"{name} {_shape(e['shape'])} {e['dtype']}" for name, e in spec.elements.items())
    out = [
        ["objective", type(program.objective).__name__],
        ["model", f"{type(config.model).__name__.removesuffix('Config')}, {_parameters_of(found)}"],
        ["data", f"{config.data.source or 'mixture'}: {spec.size:,} examples of {elements}"],
        ["classes", f"{spec.num_classes:,}" if spec.num_classes else "none"],
        ["steps", f"{assembly.steps:,} of {rows:,} examples: {epochs}"],
        ["devices", f"{program.mesh.size} x {program.device_kind} ({mesh}), {config.microbatches} microbatches"],
    ]
    out.append(["precision", _precision(assembly)])
    if spec.tokens:
        counts = f"{spec.tokens:,} in an epoch, {found.tokens:,} in the run, vocabulary {spec.vocab_size:,}"
        size = f", {spec.bytes_per_token:.2f} bytes a token" if spec.bytes_per_token is not None else ""
        out.insert(4, ["tokens", counts + size])
    if found.flops_per_example and found.flops:
        step = found.flops_per_example * rows
        parts = f"{found.flops_per_example:.3g} per example, {step:.3g} per step, {found.flops:.3g} in all"
        out.append(["FLOPs", f"{parts} (forward and backward)"])
    return out


def _parameters_of(found: Cost) -> str:
    return f"{found.total:,} parameters with all heads, {found.non_embedding:,} without embeddings"


def _precision(assembly: Assembly) -> str:
    """Types of parameters, activations, the sum of gradients over devices, and the state of the optimiser."""
    config, shapes = assembly.config, assembly.program.shapes
    compute = getattr(config.model, "dtype", "float32")
    # Slices are summed in float32. Otherwise XLA may sum the gradient of a product over devices before or after it
    # converts it to the type of the parameter.
    free = assembly.program.mesh.size > 1 and config.microbatches == 1 and compute != "float32"
    reduction = f"{compute} or float32 (XLA chooses)" if free else "float32"
    return (
        f"parameters {_types(shapes.params)}, activations {compute}, sums of gradients {reduction}, "
        f"optimiser {_types(shapes.opt_state)}"
    )


def _types(shapes: Any) -> str:
    """The types of the floating point arrays of a tree."""
    leaves = jax.tree.leaves(shapes)
    return " and ".join(sorted({str(s.dtype) for s in leaves if jnp.issubdtype(s.dtype, jnp.floating)})) or "none"


def _memory(assembly: Assembly) -> Iterator[list[str]]:
    """Yields the memory of the parts of the state."""
    program = assembly.program
    parts = {
        "parameters": (program.shapes.params, program.shardings.params),
        "extra state": (program.shapes.extra, program.shardings.extra),
        "optimiser": (program.shapes.opt_state, program.shardings.opt_state),
        "averaged parameters": (program.shapes.ema, program.shardings.ema),
    }
    total = device = 0.0
    for name, (shapes, shardings) in parts.items():
        sizes = [_bytes(s) for s in jax.tree.leaves(shapes)]
        local = [
            _bytes(jax.ShapeDtypeStruct(sharding.shard_shape(s.shape), s.dtype))
            for s, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings))
        ]
        if sizes:
            total, device = total + sum(sizes), device + sum(local)
            yield [name, f"{sum(sizes) / 1e6:,.1f}", f"{sum(local) / 1e6:,.1f}"]
    yield ["all, without gradients and activations", f"{total / 1e6:,.1f}", f"{device / 1e6:,.1f}"]


def _parameters(assembly: Assembly) -> Iterator[list[str]]:
    program = assembly.program
    shapes = jax.tree_util.tree_leaves_with_path(program.shapes.params)
    axes = jax.tree.leaves(program.axes.params, is_leaf=lambda x: isinstance(x, tuple))
    for (path, shape), names, sharding in zip(shapes, axes, jax.tree.leaves(program.shardings.params), strict=True):
        spec = ", ".join("-" if axis is None else str(axis) for axis in sharding.spec) or "-"
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        yield [name, _shape(shape.shape), getattr(names, "role", ""), spec, f"{math.prod(shape.shape):,}"]


def _bytes(s: Any) -> int:
    return math.prod(s.shape) * s.dtype.itemsize


def _shape(shape: Any) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
