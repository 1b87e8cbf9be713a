"""Hardware presets: mesh, recomputation and micro-batches for a kind of device, from the sizes of a run.

A preset follows `mesh.preset`. It fills keys that have their default values; others are left as they are. Kernels and
compiler flags need no key: attention takes the fused kernel of the platform (`model.kernel="auto"`), and the flags of
TPUs and GPUs are always set (`ssljax.parallel.flags`).

The estimate of activations is rough. `ssljax plan` compiles the step and tells what it really needs.
"""

import dataclasses
import math

from ssljax.base.errors import UserError
from ssljax.parallel import hardware

MICROBATCHES = (1, 2, 4, 8, 16, 32, 64)

# Bytes of a parameter, its gradient and two moments of Adam in float32.
STATE_BYTES = 16

# The largest share of the memory for a whole copy of the state; above it, `fsdp` splits parameters.
SHARE = 0.4

# Bytes of activations that a block keeps, as multiples of (numbers of its input) x (bytes of a number) / 2, in the way
# of Korthikanti et al. 2022, "Reducing Activation Recomputation", section 4: the input alone is 2; products with
# parameters add queries, keys, values, the result of attention and the two products of the MLP, 2 (4 + 4 + 1).
# Without recomputation ("none") a step is not faster: measured on CPUs (`ssljax.layers.config`); for 8 H100,
# `ssljax plan --config configs/recipes/gpt2.py --topology h100:8` gives 108 ms ("dots", 15 GB) and with
# `--config.model.remat=none` 158 ms (56 GB), since memory traffic bounds it.
REMATS = ("dots", "full")  # what is tried, the fastest first
KEPT = {"none": 34, "dots": 20, "full": 2}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A row of the table.

    Attributes:
        chips: names of the chips in `ssljax.parallel.hardware`.
        host: True: `fsdp` takes the devices of one host if they can hold the state, since the network between hosts is
            slow; False: all devices.
        usable: share of the memory that a program can use.
    """

    chips: tuple[str, ...]
    host: bool = False
    usable: float = 1.0


# The comments are plans of GPT-2 (124M parameters, 512 rows of 1,024 tokens) on 8 devices, by
# `ssljax plan --config configs/recipes/gpt2.py --topology NAME --config.mesh.preset=auto`: what the preset chose (data,
# remat, microbatches), memory of a device, bounds of the time of a step.
PRESETS: tuple[Preset, ...] = (
    Preset(("v4",)),  # data 8, full, 1: 7.2 of 16.4 GB, 324 to 330 ms (one core of a chip)
    Preset(("v5e",)),  # data 8, full, 1: 7.1 of 16.9 GB, 467 to 476 ms
    Preset(("v5p",)),  # data 8, dots, 1: 19.1 of 102.8 GB, 147 to 150 ms
    Preset(("v6e",)),  # data 8, dots, 1: 19.5 of 33.6 GB, 241 to 245 ms
    Preset(("tpu7x",)),  # data 8, dots, 1: 18.8 of 101.7 GB, 158 to 163 ms
    Preset(("a100", "a100-40gb"), host=True, usable=0.75),  # data 8, dots, 1: 15.6 of 63.8 GB, 192 to 195 ms
    Preset(("h100", "h100-pcie"), host=True, usable=0.75),  # data 8, dots, 1: 15.2 of 63.8 GB, 108 to 110 ms
    Preset(("h200", "gh200"), host=True, usable=0.75),  # data 8, dots, 1: 15.2 of 105.8 GB, 76 to 78 ms
    Preset(("cpu",)),  # data 8, full, 1: 18.1 of 16.0 GB, 457 s; the estimate was 3.9 GB
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a run that a preset reads.

    Attributes:
        parameters: number of parameters.
        averaged: True if the state has averaged parameters too.
        batch: examples of a batch.
        block: bytes that a block of the model gets as input for one example: tokens x width x bytes of a number; 0: the
            model has no blocks.
        depth: number of blocks.
        parts: devices that already split the state along other axes (`tensor`).
    """

    parameters: int
    averaged: bool
    batch: int
    block: float = 0.0
    depth: int = 0
    parts: int = 1

    @property
    def state(self) -> float:
        """Bytes of the state with gradients, before `fsdp` splits it."""
        return self.parameters * (STATE_BYTES + 4 * self.averaged) / self.parts


@dataclasses.dataclass(frozen=True)
class Choice:
    """A proposal of a preset: sizes of mesh axes, recomputation, slices of a batch, and the bytes that it expects."""

    data: int
    fsdp: int
    remat: str
    microbatches: int
    expected: float


def preset(device_kind: str) -> Preset:
    """Returns the row of a device kind, such as "TPU v5 lite".

    Raises:
        UserError: the table has no such device.
    """
    chip = hardware.find(device_kind)
    found = next((row for row in PRESETS if chip is not None and chip.name in row.chips), None)
    if found is None:
        known = ", ".join(name for row in PRESETS for name in row.chips)
        raise UserError(f"mesh.preset: no preset for device {device_kind!r} (there are: {known}); set none")
    return found


@dataclasses.dataclass(frozen=True)
class Given:
    """Settings that the config gives; None: to be chosen."""

    fsdp: int | None = None
    remat: str | None = None
    microbatches: int | None = None


def choose(device_kind: str, devices: int, per_host: int, sizes: Sizes, given: Given = Given()) -> Choice:
    """Returns the proposal for devices that share a batch: the fastest that is expected to fit, else the smallest.

    Args:
        device_kind: kind of the devices.
        devices: number of devices for the axes `data` and `fsdp`.
        per_host: number of them on one host.
        sizes: sizes of the run.
        given: what is not to be chosen.

    Raises:
        UserError: the table has no such device.
    """
    row = preset(device_kind)
    memory = hardware.chip(device_kind).memory * row.usable
    fsdp = given.fsdp or 1
    if given.fsdp is None and sizes.state > SHARE * memory:
        on_a_host = row.host and sizes.state / per_host <= SHARE * memory and devices % per_host == 0
        fsdp = per_host if on_a_host else devices
    # A part of the rest is left for views, gathered parameters and buffers.
    room = 0.6 * (memory - sizes.state / fsdp)
    proposals: list[Choice] = []
    for microbatches in MICROBATCHES if given.microbatches is None else (given.microbatches,):
        rows, rest = divmod(sizes.batch, devices * microbatches)
        if rest and proposals:
            break
        for remat in REMATS if given.remat is None else (given.remat,):
            kept = max(1, rows) * sizes.block * sizes.depth * KEPT[remat] / 2
            proposals.append(Choice(devices // fsdp, fsdp, remat, microbatches, sizes.state / fsdp + kept))
            if kept <= room:
                return proposals[-1]
    return min(proposals, key=lambda choice: choice.expected)


def block_bytes(forward_flops: float | None, width: int | None, dtype: str | None) -> float:
    """Bytes of tokens x width numbers that enter a block of an example, from the FLOPs of the model; 0: unknown.

    A block of width D has 12 D^2 parameters, so it computes 24 D^2 FLOPs for a token.

    Args:
        forward_flops: FLOPs of a block for one example, forward.
        width: D.
        dtype: type of activations.
    """
    if not forward_flops or not width:
        return 0.0
    size = 2 if dtype in ("bfloat16", "float16") else 4
    return forward_flops / (24 * math.pow(width, 2)) * width * size
