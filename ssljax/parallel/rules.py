"""The table from logical axis names to mesh axes.

Each dimension of a parameter has a logical name ("embed", "heads", ...). For each name the table lists candidates,
which are tuples of mesh axes. A dimension is split by the first candidate whose mesh axes no other dimension of the
array uses and whose number of devices divides the dimension. If there is none, the dimension is replicated. Names that
come first in the table choose first.
"""

import collections
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssljax.base.errors import UserError

Axes = tuple[str | None, ...]

BATCH = ("data", "fsdp", "expert")  # the mesh axes that split a batch

RULES: dict[str, tuple[tuple[str, ...], ...]] = {
    # Activations and per-example state.
    "batch": (BATCH, ("data", "fsdp"), ("data",), ("fsdp",)),
    "routed": (("data", "fsdp"), ("data",), ("fsdp",)),  # examples in front of experts, which take the axis "expert"
    "length": (("context",),),
    # Parameters. XLA replicates a table [vocab, embed] that is split along both dimensions at every lookup, so the
    # vocabulary takes both mesh axes, and the width is not split.
    "vocab": (("tensor", "fsdp"), ("tensor",), ("fsdp",)),
    "experts": (("expert",),),
    "heads": (("tensor",),),
    "kv": (("tensor",),),
    "mlp": (("tensor",),),
    "prototypes": (("tensor",),),
    "embed": (("fsdp",),),
    "queue": (BATCH, ("data", "fsdp"), ("data",), ("fsdp",)),
    "layers": (),
    "positions": (),
    "patch": (),
    "classes": (),
}


def activation_rules(taken: Collection[str] = ()) -> list[tuple[str, tuple[str, ...] | None]]:
    """Returns the rules for activations, (name, mesh axes), as flax reads them.

    The batch comes first, so the width of an activation never takes a mesh axis that splits the batch.

    Args:
        taken: mesh axes over which `shard_map` has split the arrays already.
    """
    first = {name: candidates[0] if candidates else () for name, candidates in RULES.items()}
    return [(name, tuple(axis for axis in axes if axis not in taken) or None) for name, axes in first.items()]


def free_sizes() -> dict[str, int]:
    """Returns {mesh axis: number of devices} of the current mesh, 1 for axes that a `shard_map` around has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    return {axis: 1 if axis in mesh.manual_axes else size for axis, size in mesh.shape.items()}


def on_each_device(run: Callable[..., jax.Array], in_specs: Any, out_specs: Any) -> Callable[..., jax.Array]:
    """Returns `run` with each device working on its part of the arguments, for kernels that XLA cannot partition.

    Args:
        run: function of arrays.
        in_specs, out_specs: partition specs of its arguments and its result, as `jax.shard_map` takes them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if set(mesh.axis_names) <= set(mesh.manual_axes):
        return run
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def sum_of_rows(x: jax.Array) -> jax.Array:
    """Returns sums over the rows of this device, added up over the devices among which a `shard_map` has split rows.

    Outside of one an array has the rows of all devices, and the sums are returned unchanged.
    """
    taken = tuple(axis for axis in BATCH if axis in jax.sharding.get_abstract_mesh().manual_axes)
    return jax.lax.psum(x, taken) if taken else x


def partition_spec(axes: Axes, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """The mesh axes that split each dimension of an array.

    Args:
        axes: logical names of the dimensions.
        shape: shape of the array.
        sizes: {mesh axis: number of devices}.
    """
    if len(axes) != len(shape):
        return PartitionSpec()
    ranks = {name: rank for rank, name in enumerate(RULES)}
    order = sorted(range(len(axes)), key=lambda d: ranks.get(axes[d] or "", len(ranks)))
    occupied: set[str] = set()
    spec: list[Any] = [None] * len(shape)
    for d in order:
        for candidate in RULES.get(axes[d] or "", ()):
            mesh_axes = tuple(a for a in candidate if sizes.get(a, 1) > 1)
            divides = shape[d] % math.prod(sizes[a] for a in mesh_axes) == 0
            if mesh_axes and not occupied & set(mesh_axes) and divides:
                spec[d] = mesh_axes if len(mesh_axes) > 1 else mesh_axes[0]
                occupied |= set(mesh_axes)
                break
    return PartitionSpec(*spec)


def logical_axes(boxed: Any) -> Any:
    """Replaces each flax partitioning box of a tree by its tuple of logical axis names, and other leaves by `()`."""

    def names(leaf: Any) -> Axes:
        return tuple(leaf.names) if isinstance(leaf, nn.Partitioned) else ()

    return jax.tree.map(names, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def unboxed(boxed: Any) -> Any:
    """Replaces each flax partitioning box of a tree by its array. (`nn.unbox` would also add sharding constraints.)"""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, nn.Partitioned) else leaf,
        boxed,
        is_leaf=lambda x: isinstance(x, nn.Partitioned),
    )


def shardings(axes: Any, shapes: Any, mesh: Mesh, whole: Collection[str] = ()) -> Any:
    """Returns a tree of `NamedSharding`.

    Args:
        axes: tree of logical axis names (tuples).
        shapes: tree of arrays or shapes.
        mesh: the mesh.
        whole: mesh axes that split no array.
    """
    sizes = {axis: 1 if axis in whole else size for axis, size in mesh.shape.items()}
    return jax.tree.map(
        lambda shaped, names: NamedSharding(mesh, partition_spec(names, shaped.shape, sizes)),
        shapes,
        axes,
    )


def sharding_report(axes: Any, shapes: Any, mesh: Mesh) -> str:
    """One line: megabytes of the arrays on each device, those that it holds whole, and dimensions that do not divide.

    Args:
        axes: tree of logical axis names (tuples).
        shapes: tree of arrays or shapes.
        mesh: the mesh.
    """
    sizes = dict(mesh.shape)
    total_bytes, device_bytes, uneven = 0, 0.0, collections.Counter[str]()

    def count(shaped: Any, names: Axes) -> None:
        nonlocal total_bytes, device_bytes
        spec = partition_spec(names, shaped.shape, sizes)
        used = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]  # mesh axes by dimension
        size = math.prod(shaped.shape) * shaped.dtype.itemsize
        total_bytes += size
        device_bytes += size / math.prod(sizes[a] for entry in used for a in entry)
        for name, dimension, entry in zip(names, shaped.shape, used):
            others = {a for other in used if other is not entry for a in other}
            free = {a for candidate in RULES.get(name or "", ()) for a in candidate if sizes.get(a, 1) > 1} - others
            if free and not entry:
                uneven[f"{name} {dimension} by {' or '.join(f'{a}={sizes[a]}' for a in sizes if a in free)}"] += 1

    jax.tree.map(count, shapes, axes)
    line = f"each device holds {device_bytes / 1e6:,.1f} of {total_bytes / 1e6:,.1f} MB"
    if whole := whole_arrays(axes, shapes, mesh):
        line += f"; whole on each: {summary(whole, total_bytes)}"
    if uneven:
        parts = ", ".join(f"{dimension} ({n} arrays)" for dimension, n in uneven.items())
        line += f"; replicated, since the mesh does not divide them: {parts}"
    return line


def whole_arrays(axes: Any, shapes: Any, mesh: Mesh) -> dict[str, int]:
    """Returns {path: bytes} of the arrays that no axis splits, the largest first; empty if the mesh splits no arrays.

    Args:
        axes: tree of logical axis names (tuples).
        shapes: tree of arrays or shapes.
        mesh: the mesh.
    """
    if all(mesh.shape[axis] == 1 for axis in ("fsdp", "tensor", "expert")):
        return {}
    found: dict[str, int] = {}

    def look(path: Any, shaped: Any, names: Axes) -> None:
        if not any(partition_spec(names, shaped.shape, dict(mesh.shape))):
            found[jax.tree_util.keystr(path, simple=True, separator=".")] = (
                math.prod(shaped.shape) * shaped.dtype.itemsize
            )

    jax.tree_util.tree_map_with_path(look, shapes, axes)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def summary(whole: Mapping[str, int], total: int) -> str:
    """Returns the number of arrays, their bytes, their share of `total` bytes and the names of the largest three."""
    size = sum(whole.values())
    largest = ", ".join(list(whole)[:3]) + (", ..." if len(whole) > 3 else "")
    return f"{len(whole)} arrays of {size / 1e6:,.2f} MB, {size / max(total, 1):.2%} ({largest})"


def check_whole(limit: float | None, axes: Any, shapes: Any, mesh: Mesh) -> None:
    """Checks the share of the parameters that every device holds whole.

    Args:
        limit: largest share of bytes; None: any.
        axes, shapes, mesh: see `whole_arrays`.

    Raises:
        UserError: the share is larger.
    """
    whole = whole_arrays(axes, shapes, mesh)
    total = sum(math.prod(shaped.shape) * shaped.dtype.itemsize for shaped in jax.tree.leaves(shapes))
    if limit is not None and sum(whole.values()) > limit * total:
        raise UserError(f"mesh.whole: got {limit:g}, but every device would hold whole {summary(whole, total)}")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch, whose leading axis is split."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def batch_devices(mesh: Mesh) -> int:
    """Returns the number of devices that hold different rows of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH)
