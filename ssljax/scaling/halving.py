"""Successive halving: runs that do worse than others at the same step end early."""

import dataclasses
import pathlib
from collections.abc import Mapping

from ssljax.base import durations, schema
from ssljax.base.durations import Duration
from ssljax.report.read import EVALUATIONS, METRICS, read_lines


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson and Talwalkar 2016): at each rung, the best 1 / `factor` of the runs continue."""

    metric: str = schema.setting(
        "loss", doc="what ranks the runs: 'loss', the last logged loss of training, or 'evaluation/metric'"
    )
    mode: str = schema.setting("min", doc="the best value of the metric; 'max': the largest, 'min': the smallest")
    first: Duration = schema.setting("10%", doc="the first rung, a duration; '10%': of each run")
    factor: int = schema.setting(
        3, ge=2, doc="of so many runs one continues; the next rung is so many times as far as the one before"
    )

    def validate(self) -> None:
        durations.parse(self.first, "first")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode: got {self.mode!r}, must be 'min' or 'max'")
        if self.metric != "loss" and "/" not in self.metric:
            raise ValueError(f"metric: got {self.metric!r}, must be 'loss' or 'evaluation/metric'")

    def rungs(self, lengths: durations.RunLengths) -> list[int]:
        """Returns the steps of the rungs of a run, all of them before its last step."""
        total = lengths.total_steps or 0
        step, out = max(1, durations.steps(self.first, lengths, "study.halving.first")), []
        while step < total:
            out.append(step)
            step *= self.factor
        return out

    def value(self, workdir: pathlib.Path, step: int) -> float | None:
        """Returns the value that ranks a run at a step: the last one that its files have until then; None: none.

        Raises:
            UserError: a file of the workdir is damaged.
        """
        if self.metric == "loss":
            lines = [line for line in read_lines(workdir / "metrics.jsonl", METRICS) if line["step"] <= step]
            found = lines[-1].get("loss") if lines else None
        else:
            name, _, metric = self.metric.partition("/")
            lines = [
                line
                for line in read_lines(workdir / "evals.jsonl", EVALUATIONS)
                if line["step"] <= step and (line["eval"], line["of"]) == (name, "trained")
            ]
            found = max(lines, key=lambda line: line["step"])["metrics"].get(metric) if lines else None
        return float(found) if isinstance(found, int | float) else None

    def ranked(self, values: Mapping[str, float | None]) -> list[str]:
        """Returns the runs from best to worst; a run without a value is worst, equal ones are in the order of hashes.

        Args:
            values: {hash of a run: its value}.
        """
        sign = 1.0 if self.mode == "min" else -1.0

        def key(run: str) -> tuple[bool, float, str]:
            value = values[run]
            return value is None, 0.0 if value is None else sign * value, run

        return sorted(values, key=key)

    def kept(self, entrants: int) -> int:
        """Returns how many of the runs that entered a rung continue after it, at least one."""
        return max(1, entrants // self.factor)
