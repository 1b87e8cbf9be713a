"""The table of accelerators: memory, peak rates, network and power of one jax device.

Sources: for TPUs, cloud.google.com/tpu/docs (a page for each generation) and "How to Scale Your Model" (Austin et al.
2025, part 2), which has the rates of links; for GPUs, NVIDIA's data sheets of A100, H100, H200, B200 and L4, of SXM
modules unless the name says PCIe, and the networks of DGX machines. Rates are dense, without sparsity.
"""

import dataclasses
import re
from typing import Any

from ssljax.base.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Memory and rates of one jax device.

    Attributes:
        name: short name, as in names of topologies.
        pattern: regular expression that finds the chip in a `device_kind`.
        memory: bytes that a program can use: for TPUs, what their compiler leaves; for GPUs, all of the device.
        bfloat16: FLOP/s of matrix products of bfloat16.
        float32: FLOP/s of matrix products of float32 at JAX's default precision: one pass of bfloat16 on TPUs, TF32 on
            GPUs.
        exact: FLOP/s of matrix products of float32 at the highest precision: six passes of bfloat16 on TPUs.
        bandwidth: bytes/s between memory and cores.
        link: bytes/s that a device sends to its neighbours in a collective over one mesh axis: both directions of one
            axis of a TPU's network, NVLink of a GPU.
        network: bytes/s that a device sends to other hosts (GPUs) or other slices (TPUs).
        links: axes of the network of a TPU; 1 for others.
        watts: thermal design power of the device, for TPUs of their chip's share; None: the maker does not tell. Of v4,
            the largest power that was measured (Jouppi et al. 2023, table 4).
    """

    name: str
    pattern: str
    memory: float
    bfloat16: float
    float32: float
    exact: float
    bandwidth: float
    link: float
    network: float
    links: int = 1
    watts: float | None = None

    def flops(self, dtype: str, highest: bool = False) -> float:
        """Peak FLOP/s of matrix products of a type, at the highest precision or the default one."""
        if dtype not in ("float32", "float64"):
            return self.bfloat16  # float16 is as fast
        return self.exact if highest else self.float32


def platform_of(device: Any) -> str:
    """Returns the platform of a device: "cpu", "gpu" or "tpu"."""
    return {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)


def _tpu(
    name: str,
    pattern: str,
    gib: float,
    tera: float,
    bandwidth: float,
    link: float,
    network: float,
    links: int,
    watts: float | None = None,
) -> Chip:
    peak = tera * 1e12
    return Chip(name, pattern, gib * GIB, peak, peak, peak / 6, bandwidth, link, network, links, watts)


# The first pattern that matches counts.
CHIPS: tuple[Chip, ...] = (
    #    name     pattern                    GiB    TFLOP/s bytes/s   both directions of an axis, another slice
    _tpu("v2", r"TPU v2", 7.5, 22.5, 3.5e11, 1.0e11, 3.1e9, 2, 140),  # a device is one of two cores of a chip
    _tpu("v3", r"TPU v3", 15.5, 61.5, 4.5e11, 1.0e11, 3.1e9, 2, 225),
    _tpu("v4", r"TPU v4", 30.5, 275, 1.2e12, 9.0e10, 6.25e9, 3, 192),
    _tpu("v5p", r"TPU v5p|TPU v5$", 95.74, 459, 2.765e12, 1.8e11, 6.25e9, 3),
    _tpu("v5e", r"TPU v5 lite|TPU v5e", 15.75, 197, 8.1e11, 9.0e10, 3.125e9, 2),
    _tpu("v6e", r"TPU v6", 31.25, 918, 1.6e12, 1.8e11, 12.5e9, 2),
    _tpu("tpu7x", r"TPU ?7", 94.75, 1153, 3.69e12, 1.8e11, 6.25e9, 3),  # a device is one of two halves of a chip
    #                      bytes     bf16   TF32   float32  bytes/s   NVLink one way, network card of a GPU
    Chip("gh200", r"GH200", 96e9, 989e12, 494e12, 67e12, 4.0e12, 450e9, 50e9),
    Chip("h200", r"H200", 141e9, 989e12, 494e12, 67e12, 4.8e12, 450e9, 50e9, watts=700),
    Chip("h100-pcie", r"H100.*PCIe", 80e9, 756e12, 378e12, 51e12, 2.0e12, 300e9, 50e9, watts=350),
    Chip("h100", r"H100", 85.0e9, 989e12, 494e12, 67e12, 3.35e12, 450e9, 50e9, watts=700),
    Chip("b200", r"B200", 192e9, 2250e12, 1125e12, 75e12, 8.0e12, 900e9, 50e9, watts=1000),
    Chip("a100-40gb", r"A100.*40GB", 42.4e9, 312e12, 156e12, 19.5e12, 1.555e12, 300e9, 25e9, watts=400),
    Chip("a100", r"A100", 85.0e9, 312e12, 156e12, 19.5e12, 2.039e12, 300e9, 25e9, watts=400),
    Chip("l4", r"L4\b", 24e9, 121e12, 60e12, 30e12, 300e9, 32e9, 12.5e9, watts=72),
    # A nominal core of a server: measured on two cores of one (docs/plans.md), with a share of 16 GB.
    Chip("cpu", r"^cpu", 16e9, 145e9, 145e9, 145e9, 10e9, 5e9, 1e9),
)


def find(device_kind: str) -> Chip | None:
    """Returns the row of a device kind, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite"; None if there is none."""
    return next((chip for chip in CHIPS if re.search(chip.pattern, device_kind)), None)


def chip(device_kind: str) -> Chip:
    """Returns the row of a device kind.

    Raises:
        UserError: the table has no such device.
    """
    found = find(device_kind)
    if found is None:
        known = ", ".join(chip.name for chip in CHIPS)
        raise UserError(f"device {device_kind!r}: its memory and rates are not known (known: {known})")
    return found
