"""The device mesh with its five named axes."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.parallel.rules import ACTIVATION_RULES

# Parts of the state that the axis "fsdp" splits; each choice includes those before it (ZeRO stages 1, 2, 3).
Shard = Literal["optimizer", "gradients", "parameters"]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis. One axis may be -1: it takes all remaining devices."""

    data: int = schema.setting(-1, free=True, doc="devices that split the batch and replicate parameters")
    fsdp: int = schema.setting(1, free=True, doc="devices that split the batch and parameters")
    tensor: int = schema.setting(1, free=True, doc="devices that split heads, hidden layers, vocabulary, prototypes")
    context: int = schema.setting(
        1, free=True, doc="devices that split the length of activations; attention runs around their ring"
    )
    expert: int = schema.setting(1, free=True, doc="devices that split experts (Mixtral, Switch)")
    shard: Shard = schema.setting(
        "parameters",
        free=True,
        doc="what `fsdp` splits: the state of the optimiser and averaged parameters; these and gradients; these and "
        "parameters (Rajbhandari et al. 2020, ZeRO stages 1, 2, 3)",
    )

    @property
    def sizes(self) -> dict[str, int]:
        """{mesh axis: number of devices}, -1 for all remaining ones."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "shard"}

    def validate(self) -> None:
        sizes = self.sizes
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise ValueError(f"{name}: got {size}, must be at least 1, or -1 for all remaining devices")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError("data: only one axis of the mesh can be -1 (it takes all remaining devices)")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over `devices`; None: all devices.

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
    try:
        return jax.make_mesh(shape, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape), devices=devices)
    except NotImplementedError as error:  # an axis would take a part of an axis of the network of a TPU slice
        product = " x ".join(f"{k}={v}" for k, v in zip(sizes, shape) if v != 1)
        axes = " x ".join(map(str, network_axes(devices)))
        raise UserError(
            f"mesh: {product} fits no layout of {axes} devices: each size must be the product of some of these axes"
        ) from error


def network_axes(devices: Sequence[jax.Device]) -> tuple[int, ...]:
    """Returns the number of devices along each axis of the network of TPUs, (cores last); others have one axis."""
    places = [(*device.coords, device.core_on_chip) for device in devices if hasattr(device, "core_on_chip")]
    if len(places) < len(devices):
        return (len(devices),)
    return tuple(size for values in zip(*places) if (size := len(set(values))) > 1) or (1,)


@contextlib.contextmanager
def mesh_context(mesh: Mesh) -> Iterator[Mesh]:
    """A context in which the sharding constraints of layers apply to this mesh; outside, flax ignores them."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATION_RULES):
        yield mesh


def platform() -> str:
    """The platform of the current mesh, "cpu", "gpu" or "tpu"; without a mesh, of the default device.

    The mesh decides because a program may be compiled for hardware that the compiling machine does not have.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
