"""Speed and cost of training."""

import dataclasses
import logging
import time

import jax
from jax.sharding import Mesh

from ssljax.base import schema
from ssljax.models.flops import TRAINING
from ssljax.parallel import hardware

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Frequency and form of the logs of a run."""

    every_steps: int = schema.setting(
        50, gt=0, free=True, doc="number of steps between log points, over which training metrics are averaged"
    )
    trackers: tuple[str, ...] = schema.setting(
        ("tensorboard",),
        free=True,
        doc="programs that receive the numbers too; `tensorboard`, `csv`, `wandb`, `mlflow`, `trackio`, `aim`, or a "
        "class `package.module:Class`",
    )
    pictures: bool = schema.setting(
        True,
        free=True,
        doc="draw what the objective does on held-out examples of the evaluations, at the end of the run",
    )
    progress: bool = schema.setting(True, free=True, doc="show the progress bar")
    stall_seconds: float | None = schema.setting(
        1800.0,
        gt=0,
        free=True,
        doc="seconds without a step after which the stacks of all threads are dumped; None: never",
    )
    skipped_in_a_row: int = schema.setting(
        20, gt=0, free=True, doc="number of consecutive non-finite steps after which the run stops"
    )
    check_every_steps: int = schema.setting(
        0,
        ge=0,
        free=True,
        doc="steps between comparisons of the copies of the state on different devices; the run stops and names a "
        "device whose copy differs (a silent error); 0: never; with one device there are no copies",
    )


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of a device for bfloat16; None if the table of hardware has no figure of its maker."""
    chip = hardware.find(device_kind)
    return chip.bfloat16 if chip and chip.name != "cpu" else None


class Speedometer:
    """Examples, tokens and model FLOPs per second between two log points, and model FLOPs utilisation (MFU).

    Model FLOP/s = examples/s * 3 * forward FLOPs per example: a backward pass costs as much as two forward passes, and
    recomputation is not counted. MFU = model FLOP/s / (devices * peak FLOP/s of one device) (Chowdhery et al. 2022,
    appendix B). Energy is that of the devices at their thermal design power,
    an upper bound without hosts and cooling. Both are left out for devices whose rates or power
    `ssljax.parallel.hardware` does not know.
    """

    def __init__(
        self, batch_size: int, tokens: int | None, flops: float | None, mesh: Mesh, seconds_before: float = 0.0
    ):
        """Starts the clock.

        Args:
            batch_size: examples per step, over all devices.
            tokens: tokens per example; None: no text.
            flops: forward FLOPs per example; None: unknown.
            mesh: the mesh on which the step runs.
            seconds_before: duration of the run before it was resumed.
        """
        self.batch_size, self.tokens, self.flops, self.devices = batch_size, tokens, flops, mesh.size
        kind = mesh.devices.flat[0].device_kind
        self.peak = peak_flops(kind)
        chip = hardware.find(kind)
        self.watts = None if chip is None or chip.watts is None else mesh.size * chip.watts
        if self.peak is None:
            log.info("the peak of device kind %r is not known: MFU is not logged", kind)
        self.last = time.perf_counter()
        self.start = self.last - seconds_before
        self.last_step: int | None = None
        self.waited = self.on_device = 0.0
        self._local = next((d for d in mesh.devices.flat if d.process_index == jax.process_index()), None)

    def read(self, step: int, waited: float, on_device: float) -> dict[str, float]:
        """Returns totals of the run, rates since the last call, and the largest memory of a local device so far.

        Args:
            step: number of steps done.
            waited: total time in seconds that the loop has waited for data.
            on_device: total time in seconds that the loop has waited for the devices.
        """
        now = time.perf_counter()
        out: dict[str, float] = {"examples": step * self.batch_size, "seconds": now - self.start}
        if self.tokens:
            out["tokens"] = step * self.batch_size * self.tokens
        if self.flops:
            out["flops"] = TRAINING * self.flops * step * self.batch_size
        if self.watts is not None:
            out["energy_kwh"] = self.watts * out["seconds"] / 3.6e6
        if self.last_step is not None and step > self.last_step:
            elapsed = max(now - self.last, 1e-9)
            rate = (step - self.last_step) * self.batch_size / elapsed
            out["examples_per_second"] = rate
            out["data_wait_share"] = (waited - self.waited) / elapsed
            waits = waited - self.waited + on_device - self.on_device
            out["host_share"] = max(1 - waits / elapsed, 0.0)
            if self.tokens:
                out["tokens_per_second"] = rate * self.tokens
            if self.flops:
                out["model_flops_per_second"] = TRAINING * self.flops * rate
                if self.peak:
                    out["mfu"] = TRAINING * self.flops * rate / (self.peak * self.devices)
        # Of accelerators only; a read does not wait for the step.
        memory = self._local.memory_stats() if self._local is not None else None
        if memory and "peak_bytes_in_use" in memory:
            out["device_memory_gb"] = memory["peak_bytes_in_use"] / 1e9
        self.last, self.last_step, self.waited, self.on_device = now, step, waited, on_device
        return out

    def pause(self, seconds: float) -> None:
        """Excludes `seconds` (of an evaluation or a checkpoint) from the rates."""
        self.last += seconds
