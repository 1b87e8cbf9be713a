"""Device meshes, the table from logical axes to mesh axes, and shardings of batches and states."""

from ssljax.parallel.agreement import Votes, agreed, check_equal, joint_end, lead, leader_first, leads, leave, together
from ssljax.parallel.arrays import fetch, own_rows, put_batch, put_rows, put_whole
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
    "Votes",
    "agreed",
    "batch_sharding",
    "check_equal",
    "fetch",
    "joint_end",
    "lead",
    "leader_first",
    "leads",
    "leave",
    "logical_axes",
    "make_mesh",
    "mesh_context",
    "own_rows",
    "partition_spec",
    "platform",
    "put_batch",
    "put_rows",
    "put_whole",
    "replicated",
    "sharding_report",
    "shardings",
    "together",
    "unboxed",
]
