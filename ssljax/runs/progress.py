"""The progress of a run, shown while it runs: a bar on a terminal, a line per log point elsewhere."""

import datetime
import logging
import time
from collections.abc import Mapping
from typing import Any

import rich.progress

from ssljax.base.console import console

log = logging.getLogger(__name__)

_COMPILING = "compiling"  # until the first step
_REDRAWN = 1.0  # seconds


class Progress:
    """Step, loss, learning rate, speed, memory, last evaluation, elapsed and remaining time.

    The bar has no thread that redraws it: such a thread would import modules while the main thread imports others.
    `tick` redraws it instead, at most once in a second.

    Args:
        total: number of steps of the run.
        start: number of steps that earlier starts completed.
        shown: False: shows nothing.
    """

    def __init__(self, total: int, start: int, shown: bool):
        self.total, self.start, self.shown = total, start, shown
        self._began = self._drawn = time.monotonic()
        self._numbers, self._evaluated = [_COMPILING if start < total else ""], ""
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("{task.fields[text]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console(),
            disable=not shown or not console().is_terminal,
            auto_refresh=False,
            expand=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=total, completed=start, text="".join(self._numbers))

    def tick(self, step: int, state: Any = None) -> None:
        """Redraws the bar if the last drawing is a second old."""
        if self._numbers == [_COMPILING]:
            self._numbers = [""]
        if time.monotonic() - self._drawn >= _REDRAWN:
            self._draw(step)

    def update(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Shows the numbers of a log point."""
        self._numbers = _parts(numbers)
        self._draw(step)
        if self.shown and self._bar.disable:
            elapsed = time.monotonic() - self._began
            left = elapsed / max(step - self.start, 1) * (self.total - step)
            log.info(
                "step %d/%d: %s, elapsed %s, left %s%s",
                step,
                self.total,
                ", ".join(self._numbers),
                _clock(elapsed),
                _clock(left),
                f", {self._evaluated}" if self._evaluated else "",
            )

    def evaluated(self, lines: Any) -> None:
        """Shows the first headline number of each evaluation from now on."""
        shown = [(line["eval"], name, line["metrics"].get(name)) for line in lines for name in line["headline"][:1]]
        self._evaluated = ", ".join(f"{e} {name} {value:.3f}" for e, name, value in shown if value is not None)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.stop()

    def _draw(self, step: int) -> None:
        self._drawn = time.monotonic()
        parts = [*self._numbers[:1], *filter(None, [self._evaluated.partition(",")[0]]), *self._numbers[1:]]
        room = console().width - 2 * len(f"{self.total}") - 36  # beside step, bar and times
        text = ""
        for part in filter(None, parts):
            longer = f"{text}, {part}" if text else part
            text = longer if not text or len(longer) <= room else text
        self._bar.update(self._task, completed=step, text=text, refresh=True)


def _parts(numbers: Mapping[str, Any]) -> list[str]:
    """Returns the numbers of a log point as texts, the most important ones first."""
    parts = [f"loss {numbers['loss']:.4f}"]
    for key, unit in (("tokens_per_second", "tokens/s"), ("examples_per_second", "examples/s")):
        if key in numbers:
            parts.append(f"{numbers[key]:,.0f} {unit}")
            break
    if "device_memory_gb" in numbers:
        parts.append(f"{numbers['device_memory_gb']:.1f} GB")
    if "data_wait_share" in numbers:
        parts.append(f"data {numbers['data_wait_share']:.0%}, host {numbers['host_share']:.0%}")
    if "learning_rate" in numbers:
        parts.append(f"rate {numbers['learning_rate']:.1e}")
    return parts


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
