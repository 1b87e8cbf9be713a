"""Device meshes, the table from logical axes to mesh axes, and shardings of batches and states."""

from ssljax.parallel.batch import over_batch
from ssljax.parallel.mesh import MeshConfig, make_mesh, mesh_context, platform
from ssljax.parallel.rules import (
    batch_sharding,
    logical_axes,
    partition_spec,
    replicated,
    sharding_report,
    shardings,
    unboxed,
)

__all__ = [
    "MeshConfig",
    "batch_sharding",
    "logical_axes",
    "make_mesh",
    "mesh_context",
    "over_batch",
    "partition_spec",
    "platform",
    "replicated",
    "sharding_report",
    "shardings",
    "unboxed",
]
