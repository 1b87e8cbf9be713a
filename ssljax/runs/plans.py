"""Plans: the train step of a config, compiled for hardware that need not be here, in numbers: `plan`.

The program is the one that a run would use, and the compiler is the target's own. It tells that the step compiles, the
memory that it takes on a device, and what it sends between devices; the time is an estimate from the peak rates of the
hardware (`ssljax.parallel.roofline`).
"""

import dataclasses
import logging
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import jax

from ssljax import parallel
from ssljax.base.errors import UserError, one_line
from ssljax.config import RunConfig
from ssljax.data import DataSpec
from ssljax.models.flops import TRAINING
from ssljax.parallel import hlo
from ssljax.parallel.hardware import platform_of
from ssljax.parallel.roofline import ASSUMPTIONS, Roofline, matrix_products, roofline
from ssljax.parallel.topology import Topology, topology
from ssljax.report import Table
from ssljax.runs.assembly import Assembly, assemble

log = logging.getLogger(__name__)

STATE = ("parameters", "extra state", "optimiser", "averaged parameters")
GPU_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # the share of a GPU's memory that jax takes; 0.75 by default


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory, communication and estimated time of the train step of a config on a topology.

    Attributes:
        topology: name of the topology.
        device_kind: kind of its devices.
        mesh: {mesh axis: number of devices}.
        microbatches: slices of a batch.
        parameters: number of parameters, with all heads.
        memory: kind -> bytes on one device: parts of the state, batch, temporaries (activations, gradients), results.
        available: bytes that a program can use on a device.
        needed: bytes that the step needs on a device; None: the compiler does not tell.
        fits: True if it needs at most what is available.
        failure: why the step could not be compiled; empty if it was.
        flops: FLOPs of the model in a step on all devices, without recomputation; None: unknown.
        products: FLOPs of all matrix products of a step on all devices, recomputation included.
        traffic: bytes that a device reads from and writes to its memory in a step.
        collectives: (kind, mesh axes, runs in a step, bytes that a device sends), the most bytes first.
        roofline: times of a step; None if the step was not compiled.
        compile_seconds: time of the compiler.
        notes: assumptions, one sentence each.
    """

    topology: str
    device_kind: str
    mesh: dict[str, int]
    microbatches: int
    parameters: int
    memory: dict[str, int]
    available: float
    needed: float | None
    fits: bool
    failure: str
    flops: float | None
    products: float
    traffic: float
    collectives: tuple[tuple[str, tuple[str, ...], int, float], ...]
    roofline: Roofline | None
    compile_seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON values; times in seconds, sizes in bytes."""
        out = dataclasses.asdict(self)
        if self.roofline is not None:
            derived = ("overlapped", "serial", "bound", "mfu_ceiling")
            out["roofline"] |= {name: getattr(self.roofline, name) for name in derived}
        out["collectives"] = [
            dict(zip(("kind", "axes", "runs", "sent"), collective)) for collective in self.collectives
        ]
        return out

    @property
    def state_alone(self) -> int:
        """Bytes of the state on one device."""
        return sum(self.memory.get(name, 0) for name in STATE)

    def tables(self) -> list[Table]:
        """Returns the plan as tables: the step, its memory, its collectives."""
        memory = [[kind, size_text(size)] for kind, size in self.memory.items()]
        if self.needed is not None:
            share = f"{100 * self.needed / self.available:.0f} % of {size_text(self.available)}"
            memory.append(["all" if self.fits else "all: does not fit", f"{size_text(self.needed)}, {share}"])
        collectives = [
            [kind, " x ".join(axes) or "none", f"{runs:,}", size_text(sent)]
            for kind, axes, runs, sent in self.collectives
        ]
        return [
            Table(["plan", ""], list(self._step()), list(self.notes)),
            Table(["memory of a device", ""], memory, [self.failure] if self.failure else []),
            Table(["collective", "mesh axes", "runs in a step", "bytes sent by a device"], collectives, []),
        ]

    def _step(self) -> Iterator[list[str]]:
        """Yields the rows of the table of the step."""
        axes = ", ".join(f"{axis} {size}" for axis, size in self.mesh.items() if size > 1) or "one device"
        devices = math.prod(self.mesh.values())
        yield ["topology", f"{self.topology}: {devices} x {self.device_kind} ({axes})"]
        yield ["microbatches", f"{self.microbatches}"]
        yield ["parameters", f"{self.parameters:,}"]
        if self.flops:
            yield ["FLOPs of the model", f"{self.flops:.3g} per step"]
        times = self.roofline
        if times is not None:
            yield ["matrix products", f"{self.products:.3g} FLOPs per step, with recomputation"]
            parts = {name: time_text(getattr(times, name)) for name in ("compute", "memory", "network")}
            yield ["peak rates", ", ".join(f"{name} {value}" for name, value in parts.items())]
            hidden = f"{time_text(times.overlapped)} with collectives hidden ({times.bound} bound)"
            yield ["time of a step", f"{hidden}, {time_text(times.serial)} without"]
            if times.mfu_ceiling is not None:
                yield ["MFU", f"at most {100 * times.mfu_ceiling:.1f} % of the bfloat16 peak"]
        yield ["compiled in", f"{self.compile_seconds:.1f} s"]


def plan(config: RunConfig, target: str | Topology, spec: DataSpec | None = None) -> Plan:
    """Compiles the train step of a config for a topology. The data are opened and described; nothing is trained.

    Args:
        config: the checked config.
        target: a topology, or its name such as "v5e:16x16", "h100:4x8", "cpu:8"; see `ssljax.parallel.topology`.
        spec: description of the data, which are then not opened; None: they are opened and described.

    Raises:
        UserError: the topology is unknown, or the config does not fit its devices or the data.
    """
    target = topology(target) if isinstance(target, str) else target
    assembly = assemble(config, target.devices, spec)
    config, program, began = assembly.config, assembly.program, time.perf_counter()  # with the keys of a preset
    shape = dict(program.mesh.shape)
    flops = program.objective.flops(assembly.spec)
    common: dict[str, Any] = {
        "topology": target.name,
        "device_kind": program.device_kind,
        "mesh": shape,
        "microbatches": config.microbatches,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.shapes.params)),
        "flops": TRAINING * flops * config.batch_size if flops else None,
    }
    available, notes = available_memory(target)
    state = _state_memory(assembly)
    with parallel.mesh_context(program.mesh):
        step: Any = program.jitted_step()
        traced = step.trace(program.target(), assembly.batch_target())
        products = matrix_products(traced.jaxpr.jaxpr)
        compiled, failure = _compiled(traced)
    common |= {"available": available, "notes": notes, "failure": failure, "products": sum(products.values())}
    common["compile_seconds"] = time.perf_counter() - began
    if compiled is None:
        nothing: dict[str, Any] = {"fits": False, "traffic": 0.0, "collectives": (), "roofline": None}
        return Plan(**common, **nothing, memory=state, needed=needed_bytes(failure))
    module = hlo.parse(compiled.as_text())
    found, traffic = hlo.collectives(module), hlo.traffic(module)
    memory, needed = _memory(state, compiled.memory_analysis())
    return Plan(
        **common,
        memory=memory,
        needed=needed,
        fits=needed <= available,
        traffic=traffic,
        collectives=tuple((*key, *total) for key, total in hlo.by_kind(found, shape).items()),
        roofline=roofline(target.chip, products, traffic, found, program.mesh, common["flops"]),
    )


def _compiled(traced: Any) -> tuple[Any, str]:
    """Returns the compiled program and ""; if it does not fit the memory, None and what the compiler says."""
    try:
        return traced.lower().compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, one_line(str(error).partition("RESOURCE_EXHAUSTED: ")[2].split("\n\n")[0]) or "out of memory"


def available_memory(target: Topology) -> tuple[float, tuple[str, ...]]:
    """Bytes that a program can use on a device, and the assumptions of a plan."""
    notes = (*ASSUMPTIONS, *target.notes)
    if platform_of(target.devices[0]) != "gpu":
        return target.chip.memory, notes
    try:
        share = float(os.environ.get(GPU_SHARE, "0.75"))
    except ValueError as error:
        raise UserError(f"${GPU_SHARE}: got {os.environ[GPU_SHARE]!r}, must be a number such as 0.9") from error
    note = f"GPUs: jax takes {100 * share:.0f} % of the memory of a device ({GPU_SHARE} changes it)"
    return share * target.chip.memory, (*notes, note)


def needed_bytes(message: str) -> float | None:
    """The bytes that a program needs, from the compiler's message that it has not as many; None: it does not say."""
    found = re.search(r"(?:Used|required for .*?\() ?([\d.]+)([KMGT])", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else None


def _state_memory(assembly: Assembly) -> dict[str, int]:
    """Bytes of the parts of the state on one device."""
    program = assembly.program
    fields = dict(zip(STATE, ("params", "extra", "opt_state", "ema"), strict=True))
    sizes = {}
    for name, field in fields.items():
        leaves = (jax.tree.leaves(getattr(of, field)) for of in (program.shapes, program.shardings))
        sizes[name] = sum(map(_device_bytes, *leaves))
    return {name: size for name, size in sizes.items() if size}


def _device_bytes(shape: Any, sharding: Any) -> int:
    return math.prod(sharding.shard_shape(shape.shape)) * shape.dtype.itemsize


def _memory(state: dict[str, int], analysis: Any) -> tuple[dict[str, int], float]:
    """Bytes by kind, and their sum: arguments + temporaries + results that reuse no argument."""
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    memory = {
        **state,
        "batch, counters": analysis.argument_size_in_bytes - sum(state.values()),
        "activations, gradients": analysis.temp_size_in_bytes,
        "results that reuse no argument": max(0, results),
        "program": analysis.generated_code_size_in_bytes,
    }
    needed = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + max(0, results)
    return {name: size for name, size in memory.items() if size > 0}, float(needed)


def size_text(size: float) -> str:
    """A number of bytes for readers, in MB or GB (10^9 bytes)."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def time_text(seconds: float) -> str:
    """A time for readers, in ms or s."""
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1e3 * seconds:,.2f} ms"
