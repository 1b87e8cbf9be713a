"""Several runs side by side: the keys in which they differ, means over seeds, and curves over each other."""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ssljax.base.errors import UserError
from ssljax.report import figures
from ssljax.report.page import fill
from ssljax.report.read import Run, read_run
from ssljax.report.table import Table, direction, is_share, readable

_SEED = "seed"


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs whose configs are equal except for the seed.

    Attributes:
        runs: the runs.
        changed: the values of the keys in which the groups differ.
    """

    runs: list[Run]
    changed: dict[str, Any]

    @property
    def label(self) -> str:
        """The changed keys by their last names, or the folder of the first run."""
        names = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.changed.items())
        return names or self.runs[0].workdir.name


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        groups: the runs, in the order in which they were given.
        table: a row for each group: its changed keys, its number of seeds, and the newest value of each metric, with
            the standard deviation over seeds.
    """

    groups: list[Group]
    table: Table

    def page(self) -> str:
        """One self-contained HTML page with the table and the curves."""
        names = [run.workdir.name for group in self.groups for run in group.runs]
        return fill(
            title=f"{len(names)} runs",
            facts=names,
            table_heading="Evaluations",
            table=self.table,
            figures=_figures(self.groups),
            config=json.dumps({group.label: group.changed for group in self.groups}, indent=2),
        )


def compare(workdirs: Sequence[str | pathlib.Path]) -> Comparison:
    """Compares finished or running runs.

    Args:
        workdirs: at least two workdirs.

    Raises:
        UserError: fewer than two folders, one of them twice or not a workdir, or a damaged file.
    """
    if len(workdirs) < 2:
        raise UserError("report: a comparison needs at least two workdirs")
    paths = [pathlib.Path(workdir).resolve() for workdir in workdirs]
    if twice := {str(path) for path in paths if paths.count(path) > 1}:
        raise UserError(f"report: {sorted(twice)[0]!r} is given twice")
    groups = _grouped([read_run(workdir) for workdir in workdirs])
    return Comparison(groups, _table(groups))


def _grouped(runs: list[Run]) -> list[Group]:
    flat = [_flat(_without_folder(run.config, str(run.workdir.resolve()))) for run in runs]
    keys = list(dict.fromkeys(key for config in flat for key in config if key != _SEED))
    differing = [key for key in keys if len({json.dumps(config.get(key)) for config in flat}) > 1]
    groups: dict[str, Group] = {}
    for run, config in zip(runs, flat):
        changed = {key: config.get(key) for key in differing}
        groups.setdefault(json.dumps(changed), Group([], changed)).runs.append(run)
    return list(groups.values())


def _without_folder(config: Any, folder: str) -> Any:
    """Replaces the workdir in texts by ".", since runs that store their arrays in it are alike."""
    if isinstance(config, Mapping):
        return {key: _without_folder(value, folder) for key, value in config.items()}
    return config.replace(folder, ".") if isinstance(config, str) else config


def _flat(config: Any, path: str = "") -> dict[str, Any]:
    """{"objective.temperature": 0.1, ...}"""
    if not isinstance(config, Mapping) or not config:
        return {path: config}
    return {k: v for key, value in config.items() for k, v in _flat(value, f"{path}.{key}" if path else key).items()}


def _table(groups: list[Group]) -> Table:
    changed = list(dict.fromkeys(key for group in groups for key in group.changed))
    lines = [line for group in groups for run in group.runs for line in run.evals if line["of"] == "trained"]
    shown = {(line["eval"], metric): direction(line, metric) for line in lines for metric in line["headline"]}
    rows = []
    for group in groups:
        values = [_cell(metric, [_newest(run, name, metric) for run in group.runs]) for name, metric in shown]
        loss = _cell("loss", [run.metrics[-1].get("loss") if run.metrics else None for run in group.runs])
        folder = group.runs[0].workdir.name
        rows.append([folder, *(_text(group.changed[key]) for key in changed), str(len(group.runs)), *values, loss])
    arrows = {"higher": " ↑", "lower": " ↓", None: ""}
    metrics = [f"{name} {readable(metric)}{arrows[better]}" for (name, metric), better in shown.items()]
    notes = ["↑: higher is better; ↓: lower is better; ±: standard deviation over seeds"]
    return Table(["run", *changed, "seeds", *metrics, "training loss"], rows, notes)


def _newest(run: Run, name: str, metric: str) -> float | None:
    found = [line for line in run.evals if (line["eval"], line["of"]) == (name, "trained")]
    return max(found, key=lambda line: line["step"])["metrics"].get(metric) if found else None


def _cell(metric: str, values: Sequence[float | None]) -> str:
    """The mean of the values that exist, with their standard deviation."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return "" if None in values or not values else "not finite"
    mean = statistics.fmean(finite)
    spread = statistics.stdev(finite) if len(finite) > 1 else None
    missing = f" ({len(finite)} of {len(values)})" if len(finite) < len(values) else ""
    if is_share(metric):
        return f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "") + " %" + missing
    return f"{mean:.4g}" + (f" ± {spread:.2g}" if spread is not None else "") + missing


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _figures(groups: list[Group]) -> list[tuple[str, str, str]]:
    """(heading, data URI, caption) of the losses, and of the evaluations that were measured at several steps."""
    panels: dict[str, list[tuple[str, list[tuple[int, float]]]]] = {}
    for group in groups:
        for run in group.runs:
            loss = [(line["step"], line["loss"]) for line in run.metrics if line.get("loss") is not None]
            panels.setdefault("loss", []).append((group.label, loss))
            for line in run.evals:
                for metric in line["headline"] if line["of"] == "trained" else ():
                    panels.setdefault(f"{line['eval']} {readable(metric)}", [])
    for name in [name for name in panels if name != "loss"]:
        panels[name] = [(group.label, _points(run, name)) for group in groups for run in group.runs]
    drawn = {name: lines for name, lines in panels.items() if any(len(points) > 1 for _, points in lines)}
    if not drawn:
        return []
    return [
        ("Curves", figures.compared(drawn), "One line for each run; runs that differ in their seed have one colour.")
    ]


def _points(run: Run, name: str) -> list[tuple[int, float]]:
    return sorted(
        (line["step"], (100 if is_share(metric) else 1) * line["metrics"][metric])
        for line in run.evals
        for metric in line["headline"]
        if line["of"] == "trained"
        and f"{line['eval']} {readable(metric)}" == name
        and line["metrics"].get(metric) is not None
    )
