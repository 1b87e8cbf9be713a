"""Global arrays from the rows that each process holds, and their values on the host."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding

from ssljax.parallel.rules import batch_devices, batch_sharding


def own_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Returns the numbers, int64 [n], of the rows of a batch that the devices of this process hold, in order.

    Args:
        mesh: the mesh.
        rows: rows of the global batch, a multiple of the number of devices that share it.
    """
    blocks, block = _own_blocks(mesh), rows // batch_devices(mesh)
    return (blocks[:, None] * block + np.arange(block)).reshape(-1)


def put_rows(batch: Any, mesh: Mesh) -> Any:
    """Returns the global batch, split over the devices, from the rows that this process holds; see `own_rows`.

    Processes do not communicate, so a thread may put batches while another one dispatches steps.

    Args:
        batch: tree of host arrays [n, ...].
        mesh: the mesh.
    """
    blocks, sharding = _own_blocks(mesh), batch_sharding(mesh)

    def put(own: np.ndarray) -> jax.Array:
        block = len(own) // len(blocks)

        def rows(index: Any) -> np.ndarray:
            first = int(np.searchsorted(blocks, (index[0].start or 0) // block)) * block
            return own[first : first + block]

        shape = (block * batch_devices(mesh), *own.shape[1:])
        return jax.make_array_from_callback(shape, sharding, rows)

    return jax.tree.map(put, batch)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Returns the global batch, split over the devices, from host arrays [B, ...] that every process has whole."""
    return put_rows(jax.tree.map(lambda x: x[own_rows(mesh, len(x))], batch), mesh)


def put_whole(value: Any, sharding: Sharding | None) -> jax.Array:
    """Returns a global array from its value, which every process has; processes do not communicate.

    Without a sharding, it is on the default device.
    """
    value = np.asarray(value)
    if sharding is None:
        return jax.device_put(value)
    return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)


def fetch(tree: Any) -> Any:
    """Returns the values of global arrays in the memory of every process. All processes call it, in the same order."""
    return jax.tree.map(_fetched, tree)


def _fetched(x: Any) -> np.ndarray:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _own_blocks(mesh: Mesh) -> np.ndarray:
    """Returns the numbers of the shares of a batch that the devices of this process hold, in order."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_devices(mesh),))
    return np.unique([(index[0].start or 0) if index else 0 for index in held.values()])
