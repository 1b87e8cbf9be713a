"""Options of XLA for meshes, by platform: collectives that run while kernels compute.

They are passed to the compiler with each program, not by `XLA_FLAGS`: there, a process aborts on a flag that its XLA
does not know, and a process that plans for GPUs is not one that runs on them. An option that the installed compiler
does not know is left out.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ssljax.parallel.hardware import platform_of
from ssljax.parallel.rules import replicated

# Latency hiding: the scheduler moves the start of a collective up and its end down, also across the layers of a loop,
# which then holds the parameters of two layers. Those of TPUs are the ones that MaxText trains with.
_HIDING: dict[str, dict[str, bool | int]] = {
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_enable_pipelined_all_gather": True,
        "xla_gpu_enable_pipelined_reduce_scatter": True,
        "xla_gpu_enable_pipelined_all_reduce": True,
    },
    "tpu": {
        "xla_enable_async_all_gather": True,
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
    },
}

# Collective matrix products (Wang et al. 2023, "Overlap Communication with Dependent Computation via Decomposition"):
# a product of a gathered factor is computed part by part while the next part arrives. In MiB, the size of a product
# from which on it is done.
_COLLECTIVE_PRODUCTS: dict[str, dict[str, bool | int]] = {
    "gpu": {"xla_gpu_threshold_for_windowed_einsum_mib": 64, "xla_gpu_multi_streamed_windowed_einsum": True},
    "tpu": {},  # on by default
}


def options(mesh: Mesh) -> dict[str, bool | int]:
    """Returns the options for the programs of a mesh, as far as its compiler knows them; none for one device or CPUs.

    Args:
        mesh: the mesh, also of absent devices.
    """
    platform = platform_of(mesh.devices.flat[0])
    if mesh.size == 1 or platform not in _HIDING:
        return {}
    products = _COLLECTIVE_PRODUCTS[platform] if mesh.shape.get("tensor", 1) > 1 else {}
    return known(mesh, tuple((_HIDING[platform] | products).items()))


@functools.cache
def known(mesh: Mesh, wanted: tuple[tuple[str, bool | int], ...]) -> dict[str, bool | int]:
    """Returns the options that the compiler of a mesh knows; it is asked to compile a sum of two numbers."""
    if _accepts(mesh, dict(wanted)):
        return dict(wanted)
    return {name: value for name, value in wanted if _accepts(mesh, {name: value})}


def _accepts(mesh: Mesh, given: dict[str, bool | int]) -> bool:
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    try:
        jax.jit(lambda x: x + x, compiler_options=given).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
