"""Memory of the devices of this machine."""

import os
import pathlib

import jax

from ssljax.parallel.hardware import GIB, find, platform_of

_SHARE = 0.75  # of the machine's memory, for programs on its CPU devices; the default of jax on GPUs too
_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")  # of a container, in bytes; "max": none


def free_bytes(device: jax.Device) -> float:
    """Returns the bytes that programs can still use on a device of this machine.

    For an accelerator, what its allocator may take and has not taken. CPU devices share three quarters of the memory of
    the machine, or of the container, evenly.
    """
    if platform_of(device) == "cpu":
        return _SHARE * machine_bytes() / jax.local_device_count("cpu")
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    chip = find(device.device_kind)
    return chip.memory if chip else 8.0 * GIB


def machine_bytes() -> float:
    """Returns the bytes of memory of the machine, or of the container if it has a limit."""
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        return min(whole, float(_LIMIT.read_text()))
    except (OSError, ValueError):
        return whole
