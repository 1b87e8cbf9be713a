"""Start-up of processes, device meshes, the table from logical axes to mesh axes, shardings of batches and states."""

from ssljax.parallel.agreement import (
    Board,
    LostProcess,
    Votes,
    agreed,
    check_equal,
    joint_end,
    lead,
    leader_first,
    leads,
    together,
)
from ssljax.parallel.arrays import fetch, own_rows, put_batch, put_rows, put_whole
from ssljax.parallel.batch import over_batch
from ssljax.parallel.mesh import MeshConfig, Shard, make_mesh, mesh_context, platform
from ssljax.parallel.processes import Job, coordinator_host, detect, leave, start
from ssljax.parallel.rules import (
    activation_rules,
    batch_devices,
    batch_sharding,
    check_whole,
    logical_axes,
    partition_spec,
    replicated,
    sharding_report,
    shardings,
    unboxed,
)

__all__ = [
    "Board",
    "Job",
    "LostProcess",
    "MeshConfig",
    "Shard",
    "Votes",
    "activation_rules",
    "agreed",
    "batch_devices",
    "batch_sharding",
    "check_equal",
    "check_whole",
    "coordinator_host",
    "detect",
    "fetch",
    "joint_end",
    "lead",
    "leader_first",
    "leads",
    "leave",
    "logical_axes",
    "make_mesh",
    "mesh_context",
    "over_batch",
    "own_rows",
    "partition_spec",
    "platform",
    "put_batch",
    "put_rows",
    "put_whole",
    "replicated",
    "sharding_report",
    "shardings",
    "start",
    "together",
    "unboxed",
]
