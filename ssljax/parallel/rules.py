"""The one table from logical axis names to mesh axes.

A parameter names its axes by their role ("embed", "heads", ...). Each name has an ordered list of candidates, each a
tuple of mesh axes. The first candidate is taken whose axes are still free in this array and whose size divides the
dimension; without one the dimension is replicated. Names earlier in the table choose first.
"""

import collections
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Axes = tuple[str | None, ...]

RULES: dict[str, tuple[tuple[str, ...], ...]] = {
    # Activations and per-example state.
    "batch": (("data", "fsdp"), ("data",), ("fsdp",)),
    "length": (("context",),),
    # Parameters. A table [vocab, embed] split on both axes makes the compiler replicate it at every lookup, so the
    # vocabulary takes both mesh axes and leaves the width whole.
    "vocab": (("tensor", "fsdp"), ("tensor",), ("fsdp",)),
    "experts": (("expert",),),
    "heads": (("tensor",),),
    "kv": (("tensor",),),
    "mlp": (("tensor",),),
    "prototypes": (("tensor",),),
    "embed": (("fsdp",),),
    "queue": (("data", "fsdp"), ("data",), ("fsdp",)),
    "layers": (),
    "positions": (),
    "patch": (),
    "classes": (),
}

# Flax reads activation constraints from a list of (name, mesh axes); the batch comes first, so that the width of an
# activation never takes the axis that its batch is split over.
ACTIVATION_RULES = [(name, candidates[0] if candidates else None) for name, candidates in RULES.items()]


def partition_spec(axes: Axes, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """The mesh axes that split each dimension of an array.

    Args:
        axes: logical names of the dimensions.
        shape: of the array.
        sizes: {mesh axis: number of devices}.
    """
    if len(axes) != len(shape):
        return PartitionSpec()
    ranks = {name: rank for rank, name in enumerate(RULES)}
    order = sorted(range(len(axes)), key=lambda d: ranks.get(axes[d] or "", len(ranks)))
    taken: set[str] = set()
    spec: list[Any] = [None] * len(shape)
    for d in order:
        for candidate in RULES.get(axes[d] or "", ()):
            used = tuple(a for a in candidate if sizes.get(a, 1) > 1)
            if used and not taken & set(used) and shape[d] % math.prod(sizes[a] for a in used) == 0:
                spec[d] = used if len(used) > 1 else used[0]
                taken |= set(used)
                break
    return PartitionSpec(*spec)


def logical_axes(boxed: Any) -> Any:
    """A tree of logical axis names (tuples) for a tree with flax partitioning boxes; `()` for a leaf without a box."""

    def names(leaf: Any) -> Axes:
        return tuple(leaf.names) if isinstance(leaf, nn.Partitioned) else ()

    return jax.tree.map(names, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def unboxed(boxed: Any) -> Any:
    """The plain arrays of a tree with flax partitioning boxes (`nn.unbox` would also constrain them to a mesh)."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, nn.Partitioned) else leaf,
        boxed,
        is_leaf=lambda x: isinstance(x, nn.Partitioned),
    )


def shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """The tree of `NamedSharding` for a tree of logical axes (tuples) and one of shaped arrays."""
    sizes = dict(mesh.shape)
    return jax.tree.map(
        lambda shaped, names: NamedSharding(mesh, partition_spec(names, shaped.shape, sizes)),
        shapes,
        axes,
    )


def sharding_report(axes: Any, shapes: Any, mesh: Mesh) -> str:
    """One line: the share of the arrays on each device, and the dimensions that the mesh does not divide.

    Args:
        axes: tree of logical axes (tuples).
        shapes: tree of shaped arrays.
        mesh: the mesh.
    """
    sizes = dict(mesh.shape)
    whole, held, uneven = 0, 0.0, collections.Counter[str]()

    def count(shaped: Any, names: Axes) -> None:
        nonlocal whole, held
        spec = partition_spec(names, shaped.shape, sizes)
        taken = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
        size = math.prod(shaped.shape) * shaped.dtype.itemsize
        whole += size
        held += size / math.prod(sizes[a] for entry in taken for a in entry)
        for name, dimension, entry in zip(names, shaped.shape, taken):
            others = {a for other in taken if other is not entry for a in other}
            useful = {a for candidate in RULES.get(name or "", ()) for a in candidate if sizes.get(a, 1) > 1} - others
            if useful and not entry:
                uneven[f"{name} {dimension} by {' or '.join(f'{a}={sizes[a]}' for a in sizes if a in useful)}"] += 1

    jax.tree.map(count, shapes, axes)
    line = f"each device holds {held / 1e6:,.1f} of {whole / 1e6:,.1f} MB"
    if uneven:
        line += "; does not divide, so replicated: " + ", ".join(f"{what} ({n} arrays)" for what, n in uneven.items())
    return line


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: the leading axis is split over all devices that hold different examples."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
