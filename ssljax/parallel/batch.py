"""Functions of a batch that see the rows of every device: `shard_map` over the mesh axes of the batch."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from ssljax.parallel.rules import free_sizes, partition_spec


def over_batch(
    function: Callable[[Any, Any, Any], Any], rows: Any, shared: Any = (), *, splits_shared: bool = False
) -> Any:
    """Calls a function on each device of the current mesh with its rows of the batch.

    Collectives over the axis name that the function gets (`psum`, `all_gather`, `ppermute`) reach all rows. Devices
    that differ along other mesh axes only ("tensor", ...) compute the same, or share the work with `splits_shared`.

    Args:
        function: (axis name, rows of this device, shared) -> arrays [n, ...], one row for each row of this device. The
            axis name is a mesh axis or a tuple of mesh axes, in the order of the rows; None: all rows are here, without
            a mesh or because the mesh does not divide them.
        rows: a tree of arrays [B, ...].
        shared: a tree of arrays that every device gets whole, such as learned numbers. Their gradients are summed over
            the devices once, after the function.
        splits_shared: let other mesh axes than those of the batch split `shared` and the work on it, as XLA decides.
            The function must then not communicate.

    Returns:
        The results for the global batch, arrays [B, ...].
    """
    size = jax.tree.leaves(rows)[0].shape[0]
    axis_name = partition_spec(("batch",), (size,), free_sizes())[0]
    if axis_name is None:
        return function(None, rows, shared)
    split = PartitionSpec(axis_name)
    local = lambda rows, shared: function(axis_name, rows, shared)  # noqa: E731
    options: dict[str, Any] = {}
    if splits_shared:
        names = {axis_name} if isinstance(axis_name, str) else set(axis_name)
        options = {"axis_names": names, "check_vma": False}
    return jax.shard_map(local, in_specs=(split, PartitionSpec()), out_specs=split, **options)(rows, shared)
