"""Start-up of processes, device meshes, the table from logical axes to mesh axes, shardings of batches and states."""

from ssljax.parallel.mesh import MeshConfig, make_mesh, mesh_context, platform
from ssljax.parallel.processes import Job, detect, leave, start
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
    "Job",
    "MeshConfig",
    "batch_sharding",
    "detect",
    "leave",
    "logical_axes",
    "make_mesh",
    "mesh_context",
    "partition_spec",
    "platform",
    "replicated",
    "sharding_report",
    "shardings",
    "start",
    "unboxed",
]
