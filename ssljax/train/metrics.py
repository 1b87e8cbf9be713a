"""Numbers of a run: speed and cost beside the loss, to `metrics.jsonl`, TensorBoard and the console."""

import dataclasses
import json
import logging
import math
import os
import pathlib
import re
import time
from typing import Any

import jax
import rich.console
import rich.progress

from ssljax.base import schema
from ssljax.base.locks import locked

log = logging.getLogger(__name__)

EVALS_LOCK = ".evals.lock"  # of evals.jsonl, to which `ssljax eval` writes beside the trainer

# Peak dense bfloat16 FLOP/s of one device as jax counts devices, from the vendors' data sheets; the first pattern
# that matches `device_kind` is taken.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    (r"H200|H100(?!.*PCIe)|GH200", 989e12),
    (r"H100.*PCIe", 756e12),
    (r"A100", 312e12),
    (r"B200|GB200", 2250e12),
    (r"L4\b", 121e12),
    (r"TPU v6", 918e12),
    (r"TPU v5p|TPU v5$", 459e12),
    (r"TPU v5 lite|TPU v5e", 197e12),
    (r"TPU v4", 275e12),
    (r"TPU v3", 61.5e12),
    (r"TPU v2", 22.5e12),
)


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """How often metrics are read, and how they are shown."""

    every_steps: int = schema.setting(
        50, gt=0, free=True, doc="steps between log lines; training metrics are means over these steps"
    )
    tensorboard: bool = schema.setting(True, free=True, doc="write TensorBoard events in addition to metrics.jsonl")
    progress: bool = schema.setting(True, free=True, doc="show a progress bar")
    batch_hash: bool = schema.setting(
        False, free=True, doc="log a hash of the ids of the last batch, to prove that two runs read the same data"
    )
    stall_seconds: float | None = schema.setting(
        1800.0,
        gt=0,
        free=True,
        doc="seconds without a dispatched step after which the stacks of all threads are dumped; None: never",
    )
    skipped_in_a_row: int = schema.setting(
        20, gt=0, free=True, doc="number of consecutive non-finite steps that stops the run"
    )


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of a device, or None when the table does not know it."""
    return next((peak for pattern, peak in PEAK_FLOPS if re.search(pattern, device_kind)), None)


class Speedometer:
    """Examples, tokens and model FLOPs a second between two log points, and MFU where the peak is known.

    Model FLOP/s = examples/s * 3 * forward FLOPs per example (a backward pass costs two forward ones; recomputation is
    not counted). MFU = model FLOP/s / (devices * peak FLOP/s of one device) (Chowdhery et al. 2022, appendix B).
    """

    def __init__(self, batch_size: int, tokens: int | None, flops: float | None, seconds_before: float = 0.0):
        self.batch_size, self.tokens, self.flops = batch_size, tokens, flops
        kind = jax.devices()[0].device_kind
        self.peak = peak_flops(kind)
        if self.peak is None:
            log.info("device kind %r is not in the peak table: MFU is not printed", kind)
        self.last = time.perf_counter()
        self.start = self.last - seconds_before  # of the run's earlier parts, before it was stopped
        self.last_step: int | None = None
        self.waited = 0.0

    def read(self, step: int, waited: float) -> dict[str, float]:
        """Rates since the last call; `waited` is the loop's total time without data, in seconds."""
        now = time.perf_counter()
        out: dict[str, float] = {"examples": step * self.batch_size, "seconds": now - self.start}
        if self.tokens:
            out["tokens"] = step * self.batch_size * self.tokens
        if self.flops:
            out["flops"] = 3 * self.flops * step * self.batch_size
        if self.last_step is not None and step > self.last_step:
            elapsed = max(now - self.last, 1e-9)
            rate = (step - self.last_step) * self.batch_size / elapsed
            out["examples_per_second"] = rate
            out["data_wait_share"] = (waited - self.waited) / elapsed
            if self.tokens:
                out["tokens_per_second"] = rate * self.tokens
            if self.flops:
                out["model_flops_per_second"] = 3 * self.flops * rate
                if self.peak:
                    out["mfu"] = 3 * self.flops * rate / (self.peak * jax.device_count())
        self.last, self.last_step, self.waited = now, step, waited
        return out

    def pause(self, seconds: float) -> None:
        """Leave time spent elsewhere (evaluations, checkpoints) out of the rates."""
        self.last += seconds


class Writer:
    """Appends a line per log point to `metrics.jsonl`, and the same numbers to TensorBoard events.

    `seconds` is the time that the run took before this start. On resume both files are cut back to the step that
    was restored, so that no step is told twice.
    """

    def __init__(self, workdir: pathlib.Path, start: int, tensorboard: bool):
        self.path = workdir / "metrics.jsonl"
        cut_back(self.path, start)
        with locked(workdir / EVALS_LOCK):
            cut_back(workdir / "evals.jsonl", start)
        told = self.path.read_text().splitlines() if self.path.exists() else []
        self.seconds = float(json.loads(told[-1]).get("seconds", 0.0)) if told else 0.0
        self.events = None
        if tensorboard:
            import tensorboardX

            # Points of steps after the restored one, told by the part of the run that was lost, are hidden.
            again = any(workdir.glob("events*"))
            self.events = tensorboardX.SummaryWriter(str(workdir), purge_step=start + 1 if again else None)

    def write(self, step: int, numbers: dict[str, Any]) -> None:
        line = {"step": step, **{k: _clean(v) for k, v in numbers.items()}}
        with open(self.path, "a") as f:
            f.write(json.dumps(line) + "\n")
        self.scalars(step, numbers)

    def scalars(self, step: int, numbers: dict[str, Any]) -> None:
        """To TensorBoard only (evaluations have a file of their own)."""
        if self.events is not None:
            for name, value in numbers.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self.events.add_scalar(name, value, step)

    def close(self) -> None:
        if self.events is not None:
            self.events.close()


def cut_back(path: pathlib.Path, step: int) -> None:
    """Drop the lines of a JSON-lines file that tell of steps after `step`, and a half-written last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)


class Progress:
    """The progress bar: loss, examples/s, time left."""

    def __init__(self, total: int, start: int, shown: bool):
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[text]}"),
            rich.progress.TimeRemainingColumn(),
            console=rich.console.Console(stderr=True),
            disable=not shown,
        )
        self.bar.start()
        self.task = self.bar.add_task("", total=total, completed=start, text="compiling")

    def update(self, step: int, numbers: dict[str, float]) -> None:
        text = f"loss {numbers['loss']:.4f}"
        if "examples_per_second" in numbers:
            text += f", {numbers['examples_per_second']:.0f} examples/s"
        self.bar.update(self.task, completed=step, text=text)

    def close(self) -> None:
        self.bar.stop()


def _clean(value: Any) -> Any:
    """JSON has no NaN: a number that does not exist is null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
