"""The device mesh with its five named axes."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.parallel.hardware import platform_of
from ssljax.parallel.rules import activation_rules

# Parts of the state that the axis "fsdp" splits; each choice includes those before it (ZeRO stages 1, 2, 3).
Shard = Literal["optimizer", "gradients", "parameters"]


AXES = ("data", "fsdp", "tensor", "context", "expert")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis. One axis may be -1: it takes all remaining devices."""

    data: int = schema.setting(-1, free=True, doc="devices that split the batch and replicate parameters")
    fsdp: int = schema.setting(1, free=True, doc="devices that split the batch and parameters")
    tensor: int = schema.setting(1, free=True, doc="devices that split heads, hidden layers, vocabulary, prototypes")
    context: int = schema.setting(
        1, free=True, doc="devices that split the length of activations; attention runs around their ring"
    )
    expert: int = schema.setting(1, free=True, doc="devices that split the batch and experts (Mixtral, Switch)")
    shard: Shard = schema.setting(
        "parameters",
        free=True,
        doc="what `fsdp` splits: the state of the optimiser and averaged parameters; these and gradients; these and "
        "parameters (Rajbhandari et al. 2020, ZeRO stages 1, 2, 3)",
    )
    whole: float | None = schema.setting(
        None,
        ge=0,
        le=1,
        free=True,
        doc="largest share of the parameters that every device may hold whole while `fsdp`, `tensor` or `expert` split "
        "others; None: any share",
    )

    preset: Literal["auto"] | None = schema.setting(
        None,
        free=True,
        doc="fill mesh axes, recomputation and microbatches that have their defaults for the device kind; None: "
        "nothing is filled in",
    )

    @property
    def sizes(self) -> dict[str, int]:
        """{mesh axis: number of devices}, -1 for all remaining ones."""
        return {name: getattr(self, name) for name in AXES}

    def validate(self) -> None:
        sizes = self.sizes
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise ValueError(f"{name}: got {size}, must be at least 1, or -1 for all remaining devices")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError("data: only one axis of the mesh can be -1 (it takes all remaining devices)")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over `devices`; None: all devices.

    Axes follow the network of the devices. Slices, which a slow network joins, are blocks of "data", then of "fsdp", so
    that other axes stay within a slice.

    Raises:
        UserError: the axis sizes do not multiply to the number of devices, or do not fit the network of the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes
    fixed = math.prod(s for s in sizes.values() if s != -1)
    if len(devices) % fixed or (-1 not in sizes.values() and fixed != len(devices)):
        product = " x ".join(f"{k}={v}" for k, v in sizes.items() if v != 1) or "1"
        raise UserError(f"mesh: {product} does not fit {len(devices)} devices; the product must be {len(devices)}")
    shape = tuple(len(devices) // fixed if s == -1 else s for s in sizes.values())
    types = (AxisType.Auto,) * len(shape)
    try:
        if (slices := len({getattr(device, "slice_index", None) for device in devices})) > 1:
            return Mesh(_over_slices(shape, slices, devices), tuple(sizes), axis_types=types)
        return jax.make_mesh(shape, tuple(sizes), axis_types=types, devices=devices)
    except NotImplementedError as error:  # an axis would take a part of an axis of the network of a TPU slice
        product = " x ".join(f"{k}={v}" for k, v in zip(sizes, shape) if v != 1)
        axes = " x ".join(map(str, network_axes(devices)))
        raise UserError(
            f"mesh: {product} fits no layout of {axes} devices: each size must be the product of some of these axes"
        ) from error


def _over_slices(shape: tuple[int, ...], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns the devices of several slices in the shape of a mesh.

    Raises:
        UserError: "data" and "fsdp" cannot be cut into as many blocks.
    """
    over_data = math.gcd(shape[0], slices)
    over_fsdp = slices // over_data
    if shape[1] % over_fsdp:
        raise UserError(
            f"mesh: got data={shape[0]} and fsdp={shape[1]}, their product must be a multiple of {slices}, the "
            "number of slices of devices"
        )
    across = (over_data, over_fsdp, *(1 for _ in shape[2:]))
    within = [size // count for size, count in zip(shape, across)]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices)


def network_axes(devices: Sequence[jax.Device]) -> tuple[int, ...]:
    """Returns the number of devices along each axis of the network of TPUs, (cores last); others have one axis."""
    places = [(*device.coords, device.core_on_chip) for device in devices if hasattr(device, "core_on_chip")]
    if len(places) < len(devices):
        return (len(devices),)
    return tuple(size for values in zip(*places) if (size := len(set(values))) > 1) or (1,)


@contextlib.contextmanager
def mesh_context(mesh: Mesh) -> Iterator[Mesh]:
    """A context in which the sharding constraints of layers apply to this mesh; outside, flax ignores them."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(activation_rules()):
        yield mesh


def platform() -> str:
    """The platform of the current mesh, "cpu", "gpu" or "tpu"; without a mesh, of the default device.

    The mesh decides because a program may be compiled for hardware that the compiling machine does not have.
    """
    return platform_of(jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0])
