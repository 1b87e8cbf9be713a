"""Curves of one run or of several runs over each other: the data from which `curves.js` draws them."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ssljax.report import metrics
from ssljax.report.read import Run
from ssljax.report.table import is_share, readable

Points = list[tuple[int, float]]  # (step, value), NaN where the value was not finite


@dataclasses.dataclass(frozen=True)
class Shown:
    """A run whose curves are shown.

    Attributes:
        label: name in legends.
        color: number of its colour; runs that differ in their seed share one.
        mean: name of the mean of the runs of this colour.
    """

    label: str
    color: int
    run: Run
    mean: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of a panel.

    Attributes:
        label: name in legends.
        color: number of its colour.
        points: the curve.
        spread: standard deviations of the points of a mean; (): the curve is no mean.
    """

    label: str
    color: int
    points: Points
    spread: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves in one pair of axes.

    Attributes:
        title: heading.
        lines: the curves. Values of a share are between 0 and 1.
        share: True: values are shown in per cent.
        levels: control -> value, drawn as a dashed level line.
    """

    title: str
    lines: list[Line]
    share: bool = False
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Section:
    """Panels under one heading, with notes below them."""

    heading: str
    panels: list[Panel]
    notes: list[str]


def sections(runs: Sequence[Shown]) -> list[Section]:
    """Returns the curves of runs: loss, evaluations, metrics of the model, learning rate and speed.

    A single run has the terms of its loss in one panel, and the controls of its evaluations as level lines. Several
    runs have a panel for each number. A panel in which every curve has fewer than two finite values is left out: the
    table of evaluations has such a value, and so has metrics.jsonl.
    """
    names = list(dict.fromkeys(name for shown in runs for name in metrics.numbers(shown.run.metrics)))
    losses = [name for name in names if name == "loss" or name.startswith("loss/")]
    speed = [name for name in ("learning_rate", *metrics.SPEED) if name in names]
    health = sorted(set(names) - {*losses, *speed})
    loss = [_loss(runs[0], losses)] if len(runs) == 1 else _panels(runs, losses)
    means = "of runs that differ in their seed, their mean with a band of one standard deviation"
    several = [] if len(runs) == 1 else [f"A line for each run; {means}."]
    controls = ["Dashed: controls."] if len(runs) == 1 else several
    found = [
        Section("Loss", loss, ["Training loss: each point is the mean since the previous point.", *several]),
        Section("Evaluations over training", _evaluations(runs), controls),
        Section("Metrics of training", _panels(runs, health), metrics.meanings(health)),
        Section("Learning rate and speed", _panels(runs, speed), metrics.meanings(speed)),
    ]
    drawn = [dataclasses.replace(s, panels=[p for p in s.panels if _is_curve(p)]) for s in found]
    return [section for section in drawn if section.panels]


def page_data(shown: Sequence[Section]) -> dict[str, Any]:
    """Returns the content of sections as JSON values, for `curves.js`.

    Returns:
        {"steps": lists of steps, "sections": [[panel, ...], ...]}. A panel has "title", "unit" ("%" or ""), "lines"
        and "levels". A line has "label", "color", "steps" (number of its list of steps) and "values", of 6 significant
        digits; null: not finite; a mean has "low" and "high" too. Shares are in per cent.
    """
    steps: dict[tuple[int, ...], int] = {}
    return {
        "sections": [[_panel_data(panel, steps) for panel in section.panels] for section in shown],
        "steps": [list(own) for own in steps],
    }


def points(run: Run, name: str, metric: str) -> Points:
    """Returns the values of a metric of an evaluation of the trained model, or of training if `name` is ""."""
    if name:
        own = [line for line in run.evals if (line["eval"], line["of"]) == (name, "trained")]
        found = [(line["step"], line["metrics"][metric]) for line in own if metric in line["metrics"]]
    else:
        found = [(line["step"], line[metric]) for line in run.metrics if metric in line]
    return sorted({step: math.nan if value is None else value for step, value in found}.items())


def _loss(shown: Shown, names: Sequence[str]) -> Panel:
    """Returns the loss of one run and its terms, in one panel."""
    lines = [Line(n.removeprefix("loss/"), i, points(shown.run, "", n)) for i, n in enumerate(names)]
    return Panel("loss", lines)


def _panels(runs: Sequence[Shown], names: Sequence[str]) -> list[Panel]:
    """Returns a panel for each number of metrics.jsonl, with a line for each run."""
    return [
        Panel(
            metrics.title(name),
            _lines(runs if len(runs) > 1 else [dataclasses.replace(runs[0], label="value")], "", name),
            is_share(name),
        )
        for name in names
    ]


def _lines(runs: Sequence[Shown], name: str, metric: str) -> list[Line]:
    """Returns a line for each run; of runs of one colour that share steps, their mean with its spread."""
    out = []
    for color in dict.fromkeys(shown.color for shown in runs):
        own = [Line(s.label, color, points(s.run, name, metric)) for s in runs if s.color == color]
        tables = [dict(line.points) for line in own if line.points]
        steps = sorted(set(tables[0]).intersection(*tables[1:])) if len(tables) > 1 else []
        if not steps:
            out += own
            continue
        values = [[table[step] for table in tables] for step in steps]
        means = [statistics.fmean(v) if all(map(_finite, v)) else math.nan for v in values]
        spread = [statistics.stdev(v) if all(map(_finite, v)) else math.nan for v in values]
        mean = next(shown.mean for shown in runs if shown.color == color)
        out.append(Line(mean, color, list(zip(steps, means)), spread))
    return out


def _evaluations(runs: Sequence[Shown]) -> list[Panel]:
    """Returns a panel for each shown metric of each evaluation."""
    lines = [line for shown in runs for line in shown.run.evals if line["of"] == "trained"]
    found = dict.fromkeys((line["eval"], metric) for line in lines for metric in line["headline"])
    return [
        Panel(
            f"{name}: {readable(metric)}",
            _lines(runs, name, metric),
            is_share(metric),
            _levels(runs[0].run, name, metric) if len(runs) == 1 else {},
        )
        for name, metric in found
    ]


def _levels(run: Run, name: str, metric: str) -> dict[str, float]:
    """Returns the newest finite value of each control; a control keeps its colour in all panels."""
    controls = [line for line in run.evals if line["of"] != "trained"]
    values: dict[str, float] = dict.fromkeys((line["of"] for line in controls), math.nan)
    for line in sorted(controls, key=lambda line: line["step"]):
        if line["eval"] == name and _finite(value := line["metrics"].get(metric)):
            values[line["of"]] = value
    return values


def _is_curve(panel: Panel) -> bool:
    return any(sum(map(_finite, (y for _, y in line.points))) > 1 for line in panel.lines)


def _panel_data(panel: Panel, steps: dict[tuple[int, ...], int]) -> dict[str, Any]:
    factor = 100 if panel.share else 1
    lines = [
        {
            "label": line.label,
            "color": line.color,
            "steps": steps.setdefault(tuple(step for step, _ in line.points), len(steps)),
            "values": [_rounded(y, factor) for _, y in line.points],
        }
        | _band(line, factor)
        for line in panel.lines
        if line.points
    ]
    levels = [
        {"label": label, "color": i, "value": _rounded(value, factor)}
        for i, (label, value) in enumerate(panel.levels.items(), 1)
        if _finite(value)
    ]
    return {"title": panel.title, "unit": "%" if panel.share else "", "lines": lines, "levels": levels}


def _band(line: Line, factor: int) -> dict[str, list[float | None]]:
    """Returns the values one standard deviation below and above a mean; {} for another line."""
    if not line.spread:
        return {}
    pairs = [(y, s) for (_, y), s in zip(line.points, line.spread)]
    return {"low": [_rounded(y - s, factor) for y, s in pairs], "high": [_rounded(y + s, factor) for y, s in pairs]}


def _rounded(value: Any, factor: int) -> float | None:
    return float(f"{factor * value:.6g}") if _finite(value) else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
