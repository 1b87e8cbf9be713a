"""Devices of machines that are not here, for which programs can be compiled: "v5e:16x16", "h100:4x8", "cpu:8".

The compilers of TPUs and of NVIDIA GPUs run without the hardware (`jax.experimental.topologies`). They come as packages
of their own: the extras `plan-tpu` (libtpu) and `plan-gpu` (the CUDA plugin of jax).
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from ssljax.base.errors import UserError, nearest, one_line
from ssljax.parallel import hardware
from ssljax.parallel.hardware import Chip

TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")

# What the compiler for GPUs wants to know of a device, as in XLA's `GpuTargetConfigProto`: compute capability, cores,
# clock in GHz, bytes of level-2 cache, of shared memory of a core and of a block; NVIDIA's data sheets and the CUDA
# programming guide.
_GPUS: dict[str, tuple[str, tuple[int, int], int, float, int, int, int]] = {
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 41943040, 167936, 166912),
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 52428800, 233472, 232448),
    "h200": ("NVIDIA H200", (9, 0), 132, 1.98, 62914560, 233472, 232448),
}
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_core}
  shared_memory_per_block_optin: {shared_block}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{kind}"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: the name that was given.
        devices: the devices, as for `make_mesh`.
        chip: what a device can hold and do.
        notes: differences between these devices and real ones, one sentence each.
    """

    name: str
    devices: list[Any]
    chip: Chip
    notes: tuple[str, ...] = ()


def topology(name: str) -> Topology:
    """Returns the devices of a topology. To be called before anything uses a device, since it may choose the platform.

    Args:
        name: "v4:2x2x1", "v5e:16x16", "v5p:8x8x4", "v6e:16x16", "tpu7x:2x2x1": a slice of chips; "2*v5e:16x16": two
            slices, joined by the network of the data centre; "h100:8" (also a100,
            h200): GPUs of one host; "h100:4x8": 4 hosts of 8 GPUs; "cpu:8": devices of this machine's processor;
            "here": the devices that jax finds.

    Raises:
        UserError: the name is wrong, no slice has this shape, or the compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if found := re.fullmatch(r"([1-9]\d{0,3})\*(v.*|t.*)", kind):
        kind = found[2]
    slices = int(found[1]) if found else 1
    if name == "here":
        devices = jax.devices()
        return Topology(name, devices, hardware.chip(devices[0].device_kind))
    if kind not in (*TPUS, *_GPUS, "cpu"):
        known = (*TPUS, *_GPUS, "cpu", "here")
        raise UserError(f"--topology: {kind!r} is unknown{nearest(kind, known)} (known: {', '.join(known)})")
    sizes = (
        tuple(int(size) for size in shape.split("x")) if re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", shape) else ()
    )
    if not 1 <= len(sizes) <= (3 if kind in TPUS else 1 if kind == "cpu" else 2) or (kind in TPUS and len(sizes) < 2):
        raise UserError(f"--topology: got {name!r}, must be {_example(kind)}")
    if kind == "cpu":
        return _cpu(name, sizes[0])
    _plan_on_cpu()
    return _tpu(name, kind, sizes, slices) if kind in TPUS else _gpu(name, kind, sizes)


def _example(kind: str) -> str:
    if kind in TPUS:
        flat = "v5e:16x16, the chips along each axis of its network"
        return flat if kind in ("v5e", "v6e") else f"{kind}:4x4x8, the chips along each axis of its network"
    if kind == "cpu":
        return "cpu:8, a number of devices"
    return f"{kind}:8 (GPUs of one host) or {kind}:4x8 (4 hosts of 8 GPUs)"


def _plan_on_cpu() -> None:
    """Keeps jax from looking for accelerators of this machine, which may take a minute."""
    jax.config.update("jax_platforms", "cpu")


def _cpu(name: str, count: int) -> Topology:
    _plan_on_cpu()
    if count > jax.config.jax_num_cpu_devices:  # type: ignore[attr-defined]  # -1: not set
        with contextlib.suppress(RuntimeError):  # devices are there already
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology: got {name!r}, but this process has started with {len(devices)} CPU devices")
    return Topology(name, devices[:count], hardware.chip("cpu"))


def _tpu(name: str, kind: str, sizes: tuple[int, ...], slices: int) -> Topology:
    if not _is_installed("libtpu"):
        raise UserError(f"--topology: {name} needs the compiler for TPUs: pip install 'ssljax[plan-tpu]'")
    # libtpu would look for the machine that it runs on, and complain that there is none; and it would let only one
    # process of a machine use it, as if it had TPUs.
    machine = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    machine["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    for variable, value in machine.items():
        os.environ.setdefault(variable, value)
    shape = "x".join(map(str, sizes))
    # A slice that is smaller than a host has chips of one host only.
    options: dict[str, Any] = {"chips_per_host_bounds": (*sizes, 1)[:3]} if math.prod(sizes) < 4 else {}
    if slices > 1:
        options["num_slices"] = slices
    try:
        devices: list[Any] = topologies.get_topology_desc(f"{kind}:{shape}", platform="tpu", **options).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--topology: no slice {name!r}: {one_line(str(error).partition(': ')[2] or str(error))}"
        ) from error
    notes: tuple[str, ...] = ()
    found = hardware.chip(devices[0].device_kind)
    if kind == "v4":
        # The compiler describes both cores of a chip; a v4 machine joins them to one device.
        devices = [device for device in devices if device.core_on_chip == 0]
        found = dataclasses.replace(found, memory=15.25 * hardware.GIB)
        notes = ("v4: compiled for one core of each chip, with half of its memory; a v4 machine joins both cores",)
    return Topology(name, list(devices), found, notes)


def _is_installed(module: str) -> bool:
    parent = module.rpartition(".")[0]
    return (not parent or _is_installed(parent)) and importlib.util.find_spec(module) is not None


def _gpu(name: str, kind: str, sizes: tuple[int, ...]) -> Topology:
    if not all(map(_is_installed, ("jax_plugins.xla_cuda13", "nvidia.cudnn"))):
        raise UserError(f"--topology: {name} needs the compiler for GPUs: pip install 'ssljax[plan-gpu]'")
    hosts, gpus = sizes if len(sizes) == 2 else (1, sizes[0])
    if gpus > 8:
        raise UserError(f"--topology: got {name!r}, but a host has at most 8 GPUs; write {kind}:{-(-gpus // 8)}x8")
    target = target_config(kind)
    described = topologies.get_topology_desc("", platform="cuda", topology=f"1x{hosts}x{gpus}", target_config=target)
    note = "GPUs: kernels are chosen without measuring them, which needs the device"
    return Topology(name, list(described.devices), hardware.chip(_GPUS[kind][0]), (note,))


def target_config(kind: str) -> str:
    """Returns the description of a GPU for its compiler, a text of XLA's `GpuTargetConfigProto`."""
    description, (major, minor), cores, clock, cache, shared_core, shared_block = _GPUS[kind]
    chip = hardware.chip(description)
    return _TARGET.format(
        kind=description,
        major=major,
        minor=minor,
        cores=cores,
        clock=clock,
        cache=cache,
        shared_core=shared_core,
        shared_block=shared_block,
        units=64 if major == 8 else 128,
        bandwidth=round(chip.bandwidth),
        memory=round(chip.memory),
    )
