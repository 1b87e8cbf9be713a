"""Several runs side by side: the keys in which they differ, means over seeds, and curves over each other."""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from ssljax.base.errors import UserError
from ssljax.base.plain import dotted
from ssljax.report import curves, facts
from ssljax.report.page import fill
from ssljax.report.read import Run, read_run
from ssljax.report.table import Table, direction, format_metric, readable

_SEED = "seed"
_NAMED = 3  # largest number of keys that name a curve
_COLUMNS = 6  # largest number of keys that are columns of the table
_WITHOUT_EFFECT = ("log.", "checkpoint.", "data.cache_dir", "data.prefetch")  # keys that change no result


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
        """The changed keys by their last names; "" if there are none, or more than a legend has room for."""
        if len(self.changed) > _NAMED:
            return ""
        return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.changed.items())


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
        runs = [run for group in self.groups for run in group.runs]
        return fill(
            title=f"{len(runs)} runs",
            facts=[_folder(run, runs) for run in runs],
            table_heading="Evaluations",
            table=self.table,
            sections=curves.sections(_shown_runs(self.groups)),
            runs={_folder(run, runs): facts.description(run) for run in runs},
            config=json.dumps({_folder(g.runs[0], runs): g.changed for g in self.groups}, indent=2),
        )


def compare(workdirs: Sequence[str | pathlib.Path]) -> Comparison:
    """Compares finished or running runs.

    Args:
        workdirs: at least two workdirs.

    Raises:
        UserError: fewer than two folders, one of them twice or not a workdir, or a damaged file.
    """
    if len(workdirs) < 2:
        raise UserError("compare: a comparison needs at least two workdirs")
    paths = [pathlib.Path(workdir).resolve() for workdir in workdirs]
    if twice := {str(path) for path in paths if paths.count(path) > 1}:
        raise UserError(f"compare: {sorted(twice)[0]!r} is given twice")
    groups = _grouped([read_run(workdir) for workdir in workdirs])
    return Comparison(groups, _table(groups))


def _grouped(runs: list[Run]) -> list[Group]:
    """Returns runs that differ in their seed only as one group; runs of one config and seed are groups of their own."""
    flat = [
        {key: _without_folder(value, str(run.workdir.resolve())) for key, value in dotted(run.config).items()}
        for run in runs
    ]
    keys = differing(flat)
    groups: dict[str, Group] = {}
    seeds: dict[str, set[Any]] = {}
    for run, config in zip(runs, flat):
        changed, seed, copy = {key: config.get(key) for key in keys}, config.get(_SEED), 0
        while seed in seeds.setdefault(key := json.dumps([changed, copy]), set()):
            copy += 1
        seeds[key].add(seed)
        groups.setdefault(key, Group([], changed)).runs.append(run)
    return list(groups.values())


def differing(configs: list[dict[str, Any]]) -> list[str]:
    """Returns the keys whose values differ, without the seed and those that change no result.

    A key that only some of the configs have, with one value, is left out if other keys of its group, or of the groups
    around it, tell these configs from the others: temperatures beside `objective.name`, for example.
    """
    every = dict.fromkeys(key for config in configs for key in config)
    keys = [key for key in every if key != _SEED and not key.startswith(_WITHOUT_EFFECT)]
    values = {key: [json.dumps(config.get(key)) for config in configs] for key in keys}
    found = [key for key in keys if len({json.dumps(config[key]) for config in configs if key in config}) > 1]
    for key in keys:
        present = [value != "null" for value in values[key]]
        groups = {key[:i] for i, letter in enumerate(key) if letter == "."}
        beside = [values[other] for other in found if other.rpartition(".")[0] in groups]
        told = {*zip(*beside)} if beside else {()}
        if len(set(present)) > 1 and len({*zip(present, *beside)}) > len(told):
            found.append(key)
    return [key for key in keys if key in found]


def _without_folder(value: Any, folder: str) -> Any:
    """Replaces the workdir in a text by ".", since runs that store their arrays in it are alike."""
    return value.replace(folder, ".") if isinstance(value, str) else value


def _table(groups: list[Group]) -> Table:
    """Returns a row for each group. More keys that differ than `_COLUMNS` are notes below the table, not columns."""
    changed, shown = list(groups[0].changed), _shown(groups)
    columns = changed if len(changed) <= _COLUMNS else []
    rows = []
    for group in groups:
        cells = [
            _cell(metric, [curve[-1][1] if (curve := curves.points(run, name, metric)) else None for run in group.runs])
            for name, metric in shown
        ]
        folder, values = group.runs[0].workdir.name, (_text(group.changed[key]) for key in columns)
        rows.append([folder, *values, str(len(group.runs)), *cells])
    arrows = {"higher": " ↑", "lower": " ↓", None: ""}
    headings = [_heading(name, metric) + arrows[better] for (name, metric), better in shown.items()]
    notes = ["↑: higher is better; ↓: lower is better; ±: standard deviation over seeds"]
    if not columns:
        for group in groups if changed else ():
            found = ", ".join(f"{key} {_text(value)}" for key, value in group.changed.items() if value is not None)
            notes.append(f"{group.runs[0].workdir.name}: {found}")
    return Table(["run", *columns, "seeds", *headings], rows, notes)


def _shown(groups: list[Group]) -> dict[tuple[str, str], str | None]:
    """{(evaluation, metric): better direction} of all runs; the last is ("", "loss"), the loss of training."""
    lines = [line for group in groups for run in group.runs for line in run.evals if line["of"] == "trained"]
    found = {(line["eval"], metric): direction(line, metric) for line in lines for metric in line["headline"]}
    return {**found, ("", "loss"): None}


def _heading(name: str, metric: str) -> str:
    return f"{name} {readable(metric)}" if name else "training loss"


def _cell(metric: str, values: Sequence[float | None]) -> str:
    """The mean of the finite values, with their standard deviation; None: the run has no value."""
    measured = [value for value in values if value is not None]
    finite = [value for value in measured if math.isfinite(value)]
    if not measured:
        return ""
    spread = {f"{metric}_std": statistics.stdev(finite)} if len(finite) > 1 else {}
    text = format_metric(metric, {metric: statistics.fmean(finite) if finite else None, **spread})
    return text + (f" ({len(finite)} of {len(values)})" if 0 < len(finite) < len(values) else "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shown_runs(groups: list[Group]) -> list[curves.Shown]:
    """Returns the runs with their colours, and with labels that differ: changed keys, folders, or both."""
    runs = [run for group in groups for run in group.runs]
    shown = []
    for i, group in enumerate(groups):
        for run in group.runs:
            folder = _folder(run, runs)
            alike = [other for other in groups if other.changed == group.changed]
            label = f"{group.label} ({folder})" if len(group.runs) > 1 or len(alike) > 1 else group.label
            mean = f"{label if len(alike) > 1 else group.label or folder}, mean of {len(group.runs)} seeds"
            shown.append(curves.Shown(label if group.label else folder, i, run, mean))
    return shown


def _folder(run: Run, runs: list[Run]) -> str:
    """Returns the name of the folder of a run, or its path if another run has this name."""
    several = sum(other.workdir.name == run.workdir.name for other in runs) > 1
    return str(run.workdir) if several else run.workdir.name
