"""Silent errors: checksums of the copies of each array on different devices, which must be equal bit for bit."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.train.checkpoint import checksum


class Replicas:
    """Compares the copies (replicas) of the arrays of a state on all devices of a mesh.

    Each device computes the checksums of the parts that it holds; one word for each array leaves it. Devices that hold
    the same part of an array must have the same checksum. All processes call it, at the same step.

    Args:
        target: a tree of `jax.ShapeDtypeStruct` with shardings, as `Program.target()` returns it.
        mesh: the mesh of the shardings.
    """

    def __init__(self, target: Any, mesh: Mesh):
        leaves = jax.tree_util.tree_leaves_with_path(target)
        self._mesh, self._shapes = mesh, [leaf for _, leaf in leaves]
        self._names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        self._sums = jax.jit(
            jax.shard_map(
                lambda leaves: jnp.stack([checksum(leaf) for leaf in leaves])[:, None],
                mesh=mesh,
                in_specs=([leaf.sharding.spec for leaf in self._shapes],),
                out_specs=PartitionSpec(None, mesh.axis_names),
                check_vma=False,
            )
        )

    def check(self, step: int, state: Any) -> None:
        """Compares all copies of the state.

        Args:
            step: number of steps done, for the message.
            state: a tree like the target.

        Raises:
            UserError: copies differ; the line names the devices and the first array. All processes raise it.
        """
        sums_LxD = parallel.fetch(self._sums(jax.tree.leaves(state)))
        found = [(name, odd) for name, odd in zip(self._names, map(self._odd, self._shapes, sums_LxD)) if odd]
        if not found:
            return
        name, devices = found[0]
        more = f" (and {len(found) - 1} more arrays)" if len(found) > 1 else ""
        error = UserError(
            f"step {step}: the copy of {name}{more} on {_listed(devices)} differs from those of other devices: an "
            "error of memory or arithmetic; leave this device out and start again from a checkpoint before this step"
        )
        raise parallel.agreed(error)

    def _odd(self, shape: Any, sums_D: np.ndarray) -> list[jax.Device]:
        """Returns the devices whose part differs from that of most devices with the same part; of a tie, all."""
        place = {device: number for number, device in enumerate(self._mesh.devices.flat)}
        parts = collections.defaultdict(list)
        for device, index in shape.sharding.devices_indices_map(shape.shape).items():
            parts[str(index)].append(device)
        odd: list[jax.Device] = []
        for devices in parts.values():
            counts = collections.Counter(int(sums_D[place[device]]) for device in devices)
            (common, count), *others = counts.most_common()
            if others:
                tie = count == others[0][1]
                odd += [device for device in devices if tie or int(sums_D[place[device]]) != common]
        return sorted(odd, key=lambda device: device.id)


def _listed(devices: list[jax.Device]) -> str:
    first = ", ".join(f"device {d.id} of process {d.process_index} ({d.device_kind})" for d in devices[:4])
    return first + (f" and {len(devices) - 4} more" if len(devices) > 4 else "")
