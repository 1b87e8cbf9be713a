"""The time of a step from what it computes and moves, at the peak rates of the hardware (Williams et al. 2009).

    compute = sum over types of FLOPs / peak          memory = bytes read and written / bandwidth
    network = sum over collectives of bytes sent / bandwidth of the way that they take

Computation and memory overlap within a kernel. Collectives overlap with kernels if the compiler schedules them so:
max(compute, memory, network) is the time with all of them hidden, max(compute, memory) + network that with none.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ssljax.parallel.hardware import Chip
from ssljax.parallel.hlo import Collective

ASSUMPTIONS = (
    "every unit runs at the peak of its data sheet; starts of kernels, latency and waits for data are 0",
    "matrix products are spread evenly over the devices; other operations cost memory traffic only",
    "collectives send as few bytes as an algorithm can (rings) over free links",
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Times of one step in seconds, and the share of the peak that they leave.

    Attributes:
        compute: of the matrix products, at the peak of their types.
        memory: of reads from and writes to the memory of a device.
        network: of the collectives, one after another.
        model_flops: FLOPs of the model on one device in a step, without recomputation; None: unknown.
        peak: FLOP/s of a device, for bfloat16.
    """

    compute: float
    memory: float
    network: float
    model_flops: float | None
    peak: float

    @property
    def overlapped(self) -> float:
        """Time of a step whose collectives are hidden behind kernels."""
        return max(self.compute, self.memory, self.network)

    @property
    def serial(self) -> float:
        """Time of a step whose collectives wait for kernels, and kernels for them."""
        return max(self.compute, self.memory) + self.network

    @property
    def mfu_ceiling(self) -> float | None:
        """Model FLOPs utilisation if all collectives are hidden: no run is above it."""
        return self.model_flops / (self.peak * self.overlapped) if self.model_flops and self.overlapped else None

    @property
    def bound(self) -> str:
        """The part that takes the longest: "compute", "memory" or "network"."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def roofline(
    chip: Chip,
    products: Mapping[tuple[str, bool], float],
    traffic: float,
    collectives: Iterable[Collective],
    mesh: Mesh,
    model_flops: float | None = None,
) -> Roofline:
    """Returns the times of a step.

    Args:
        chip: the hardware of a device.
        products: {(type, highest precision): FLOPs of matrix products of a step on all devices}; see `matrix_products`.
        traffic: bytes that a device reads and writes in a step.
        collectives: the collectives of a step.
        mesh: the mesh.
        model_flops: FLOPs of the model in a step on all devices.
    """
    compute = sum(flops / chip.flops(*kind) for kind, flops in products.items()) / mesh.size
    network = sum(seconds(collective, chip, mesh) for collective in collectives)
    own = None if model_flops is None else model_flops / mesh.size
    return Roofline(compute, traffic / chip.bandwidth, network, own, chip.flops("bfloat16"))


def seconds(collective: Collective, chip: Chip, mesh: Mesh) -> float:
    """Time of all runs of a collective.

    Within a host (GPUs) or a slice (TPUs) it takes NVLink or the chips' own network. Across, the members of each host
    first share the work, so each sends its share of the bytes over the slow network.
    """
    devices = mesh.devices.reshape(-1)
    owners = np.array([_owner(d) for d in devices])
    if not collective.crosses(owners):
        return collective.sent / (chip.link * _links(collective, chip, devices))
    of = owners[collective.groups]
    if collective.kind == "collective-permute":
        return collective.sent / chip.network
    hosts = max(len(set(row)) for row in of.tolist())
    members = max(1, collective.size // hosts)
    passes = (2 if collective.kind == "all-reduce" else 1) * collective.bytes * collective.count
    inside = (members - 1) / members * passes / chip.link
    share = collective.size if collective.kind == "all-to-all" else hosts
    across = (hosts - 1) / hosts * passes / chip.network
    return inside + across / (1 if share == collective.size else members)


def _owner(device: Any) -> int:
    """The slice of a TPU or the host of another device."""
    if hasattr(device, "core_on_chip"):
        return getattr(device, "slice_index", None) or 0
    return int(device.process_index)


def _links(collective: Collective, chip: Chip, devices: np.ndarray) -> float:
    """The number of axes of a TPU's network that the members of a group use at once; an open axis counts half.

    An axis is closed to a ring if it is 16 long (2D networks) or a multiple of 4 (3D networks), as the documentation of
    Cloud TPU says.
    """
    if chip.links == 1 or not hasattr(devices[0], "coords"):
        return 1.0
    places = np.array([device.coords for device in devices])
    along = places[collective.groups]  # [groups, members, axes]
    lengths = places.max(axis=0) - places.min(axis=0) + 1
    moves = (along != along[:, :1]).any(axis=(0, 1))
    closed = lengths % (16 if chip.links == 2 else 4) == 0
    axes = sum((1.0 if ring else 0.5) for moved, ring in zip(moves, closed) if moved)
    return 1.0 if collective.kind == "collective-permute" else max(axes, 0.5)


def matrix_products(jaxpr: Any, times: float = 1.0) -> dict[tuple[str, bool], float]:
    """FLOPs of the matrix products and convolutions of a traced program, 2 m n k for [m, k] @ [k, n].

    Recomputation counts, a loop as often as it runs, and a part that runs on each device (`shard_map`) for all of them.
    Of a branch, the costliest case counts.

    Returns:
        {(type of the factors, True at the highest precision): FLOPs}.
    """
    out: dict[tuple[str, bool], float] = collections.defaultdict(float)
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated", "ragged_dot_general", "ragged_dot"):
            kind = (str(equation.invars[0].aval.dtype), "HIGHEST" in str(parameters.get("precision")))
            out[kind] += times * _flops(equation)
        elif name.startswith("dot_product_attention"):  # cuDNN's fused kernels
            out[(str(equation.invars[0].aval.dtype), False)] += times * _attention_flops(equation)
        elif name == "cond":
            cases = [matrix_products(branch.jaxpr, times) for branch in parameters["branches"]]
            _add(out, max(cases, key=lambda case: sum(case.values())))
        else:
            for inner in _inner(parameters):
                _add(out, matrix_products(inner, times * _repetitions(name, parameters)))
    return dict(out)


def _add(total: dict[tuple[str, bool], float], part: Mapping[tuple[str, bool], float]) -> None:
    for kind, flops in part.items():
        total[kind] += flops


def _inner(parameters: Mapping[str, Any]) -> list[Any]:
    """The programs inside an equation, without the rules of differentiation, which are functions."""
    found = []
    for value in jax.tree.leaves(dict(parameters), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            found.append(inner)
    return found


def _repetitions(name: str, parameters: Mapping[str, Any]) -> float:
    if name == "scan":
        return float(parameters["length"])
    if name == "shard_map":
        sizes = dict(parameters["mesh"].shape)
        manual = parameters.get("newly_manual_axes") or parameters.get("manual_axes") or sizes
        return float(math.prod(sizes[axis] for axis in manual))
    if name == "pallas_call":
        return float(math.prod(parameters["grid_mapping"].grid))
    return 1.0


def _flops(equation: Any) -> float:
    left, right = (v.aval.shape for v in equation.invars[:2])
    out = equation.outvars[0].aval.shape
    if equation.primitive.name == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        taps = math.prod(right[d] for d in numbers.rhs_spec[1:])  # input channels of a group, window
        return 2.0 * math.prod(out) * taps
    if equation.primitive.name.startswith("ragged_dot"):  # [m, k] @ [groups, k, n]
        return 2.0 * math.prod(out) * left[-1]
    ((contracted, _), _) = equation.params["dimension_numbers"]
    return 2.0 * math.prod(out) * math.prod(left[d] for d in contracted)


def _attention_flops(equation: Any) -> float:
    """FLOPs of fused attention: two products forward, five backward; half of the pairs if it is causal."""
    q, k = (v.aval.shape for v in equation.invars[:2])  # [B, T, H, K]
    products = 5 if "bwd" in equation.primitive.name else 2
    causal = "CAUSAL" in str(equation.params.get("mask_type", "")).upper()
    return products * 2.0 * math.prod(q) * k[1] * (0.5 if causal else 1.0)
