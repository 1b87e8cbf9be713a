"""The runs below a folder: those of a store, or workdirs of `ssljax train`."""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ssljax.base.errors import UserError
from ssljax.base.files import local_folder, read_json, replacing
from ssljax.base.locks import is_alive
from ssljax.base.plain import dotted
from ssljax.report.compare import differing
from ssljax.report.read import EVALUATIONS, METRICS, STARTS, read_lines
from ssljax.report.table import Table, direction, format_metric, readable
from ssljax.scaling.ledger import NAME, Ledger, Row
from ssljax.scaling.overview import current, summary

_DEEPEST = 5  # levels of folders that are searched for workdirs
_METRICS = 3  # largest number of metrics that are columns
_OWN = (
    *("study", "run", "state", "params", "params_non_embedding", "tokens", "examples", "unique_tokens"),
    *("unique_examples", "flops", "steps", "step", "loss", "seconds"),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run of a folder.

    Attributes:
        name: its path below the folder; in a store, STUDY/NAME.
        state: as in a ledger; of a workdir: "done", "running", "unfinished", or "damaged".
        step, steps: steps done, and the length of the run (None: unknown).
        loss: last logged loss; None: none, or not finite.
        metrics: {"evaluation/metric": (best value, better direction)}.
        config: {dotted key: value}.
    """

    name: str
    state: str
    step: int
    steps: int | None
    loss: float | None
    metrics: dict[str, tuple[float, str | None]]
    config: dict[str, Any]


def list_runs(folder: str | pathlib.Path) -> Table:
    """Returns a row for each run: state, step, last loss, best metrics, and the keys in which it differs from others.

    Raises:
        UserError: the folder does not exist, has no runs, or its ledger is damaged.
    """
    root = local_folder(folder, "runs")
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder, must hold workdirs of `ssljax train` or a store of `ssljax sweep`")
    notes = []
    if (root / NAME).exists():
        ledger = Ledger(root)
        rows = [current(ledger, row) for row in ledger.rows()]
        notes.append(summary(rows))
        entries = [_of_store(ledger, row) for row in rows]
    else:
        entries = [
            read_entry(path, str(path.relative_to(root)) if path != root else path.name) for path in workdirs(root)
        ]
    if not entries:
        raise UserError(f"{folder}: has no runs, must hold workdirs of `ssljax train` or a store of `ssljax sweep`")
    return _table(entries, notes)


def write_csv(folder: str | pathlib.Path, path: str | pathlib.Path) -> int:
    """Writes `run_columns` of a store, or of a study of it, as a CSV file. Returns the number of lines.

    Raises:
        UserError: there is no ledger, or it is damaged.
    """
    columns = run_columns(folder)
    with replacing(pathlib.Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*columns.values()))
    return len(columns["run"])


def run_columns(folder: str | pathlib.Path) -> dict[str, list[Any]]:
    """Returns the runs of a store as columns {name: [n]}, for `ssljax fit` and other programs.

    A run of several studies has one row, with the name that the first of them gave it. Columns: study, run, state,
    params, params_non_embedding, tokens, examples, unique_tokens, unique_examples (different ones among them), flops
    (training FLOPs until the last logged step), steps, step, loss, seconds, a column for each metric
    "evaluation/metric", for each changed key, and for each value that names a run and is no key, such as budget; None
    where a run has no value.

    Args:
        folder: a store, or the folder STORE/STUDY of one of its studies.

    Raises:
        UserError: there is no ledger, or it is damaged.
    """
    root = pathlib.Path(os.path.abspath(folder))
    stores = [one for one in (root, root.parent) if (one / NAME).exists()]
    if not stores:
        raise UserError(f"{folder}: has no {NAME}, must be a store of `ssljax sweep`, or the folder of a study in it")
    study = None if stores[0] == root else root.name
    ledger = Ledger(stores[0])
    changes: dict[str, dict[str, Any]] = {}
    unique: dict[str, Row] = {}
    for row in ledger.rows(study):
        labels = {key: value for key, value in row.labels.items() if key not in _OWN}
        changes[row.hash] = {**labels, **row.changes, **changes.get(row.hash, {})}
        unique.setdefault(row.hash, row)
    rows = [current(ledger, row) for row in unique.values()]
    metrics = dict.fromkeys(name for row in rows for name in row.metrics)
    keys = dict.fromkeys(key for own in changes.values() for key in own if key not in _OWN)
    out: dict[str, list[Any]] = {name: [] for name in (*_OWN, *metrics, *keys)}
    for row in rows:
        sizes = (row.parameters, row.non_embedding, *_seen(ledger, row), row.steps, row.step, row.loss, row.seconds)
        own = dict(zip(_OWN, (row.study, row.name, row.state, *sizes)))
        for name, column in out.items():
            value = own if name in own else row.metrics if name in metrics else changes[row.hash]
            column.append(value.get(name))
    return out


def _seen(ledger: Ledger, row: Row) -> tuple[int | None, int | None, int | None, int | None, float | None]:
    """Returns tokens, examples, different ones among them, and FLOPs of a run until its last logged step."""
    share = row.step / row.steps if row.steps else 0.0
    tokens, examples = (None if n is None else round(n * share) for n in (row.tokens, row.examples))
    flops = None if row.flops is None else row.flops * share
    try:
        size = read_json(ledger.workdir(row.hash) / "data.json").get("size")
    except (UserError, OSError):  # a run that has not begun has none
        size = None
    if size is None or not examples:
        return tokens, examples, None, None, flops
    unique = min(examples, size)
    return tokens, examples, None if tokens is None else round(tokens * unique / examples), unique, flops


def workdirs(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the workdirs in a folder and below it, in the order of their names; links are followed at its top."""

    def found(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
        if is_workdir(folder):
            yield folder
        elif depth < _DEEPEST:
            with os.scandir(folder) as inside:
                names = sorted(e.name for e in inside if e.is_dir(follow_symlinks=depth == 0) and e.name[0] != ".")
            for name in names:
                yield from found(folder / name, depth + 1)

    return list(found(root, 0))


def is_workdir(folder: pathlib.Path) -> bool:
    """Returns True if a folder has the files of a run."""
    return (folder / "config.json").is_file() and any(
        (folder / name).exists() for name in ("data.json", "metrics.jsonl", "evals.jsonl", "starts.jsonl")
    )


def read_entry(workdir: pathlib.Path, name: str) -> Entry:
    """Reads the entry of a workdir. Damaged files make its state "damaged", and are no error."""
    try:
        config = dotted(read_json(workdir / "config.json"))
        metrics = read_lines(workdir / "metrics.jsonl", METRICS)
        evaluations = read_lines(workdir / "evals.jsonl", EVALUATIONS)
        starts = read_lines(workdir / "starts.jsonl", STARTS)
    except (UserError, OSError):
        return Entry(name, "damaged", 0, None, None, {}, {})
    steps = starts[-1].get("steps") if starts else None
    step, loss = (metrics[-1]["step"], metrics[-1].get("loss")) if metrics else (0, None)
    lease = workdir / ".lease"
    running = lease.exists() and is_alive(lease.read_text()) is not False
    state = "running" if running else "done" if steps is not None and step >= steps else "unfinished"
    return Entry(name, state, step, steps, loss, best(evaluations), config)


def _of_store(ledger: Ledger, row: Any) -> Entry:
    """Returns the entry of a run of a ledger; its evaluations are those of its files."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(UserError):
        lines = read_lines(ledger.workdir(row.hash) / "evals.jsonl", EVALUATIONS)
    return Entry(f"{row.study}/{row.name}", row.state, row.step, row.steps, row.loss, best(lines), row.changes)


def best(lines: list[dict[str, Any]]) -> dict[str, tuple[float, str | None]]:
    """Returns the best value of each headline metric of the trained model; the last one where neither is better."""
    out: dict[str, tuple[float, str | None]] = {}
    for line in sorted(lines, key=lambda line: line["step"]):
        for metric in line["headline"] if line["of"] == "trained" else ():
            value, better = line["metrics"].get(metric), direction(line, metric)
            if value is None:
                continue
            known = out.get(name := f"{line['eval']}/{metric}")
            if known is None or better is None or (value > known[0]) == (better == "higher"):
                out[name] = value, better
    return out


def _table(entries: list[Entry], notes: list[str]) -> Table:
    metrics = dict.fromkeys(name for entry in entries for name in entry.metrics)
    shown = list(metrics)[:_METRICS]
    read = [entry for entry in entries if entry.config]
    keys = differing([entry.config for entry in read])
    keys += ["seed"] if len({_value(entry, "seed") for entry in read}) > 1 else []
    rows = []
    for entry in entries:
        cells = [_cell(entry.metrics, name) for name in shown]
        loss = "" if entry.loss is None else f"{entry.loss:.4g}"
        steps = f"{entry.step:,} / {entry.steps:,}" if entry.steps is not None else f"{entry.step:,}"
        changes = ", ".join(f"{key} {_value(entry, key)}" for key in keys if key in entry.config)
        rows.append([entry.name, entry.state, steps, loss, *cells, changes])
    arrows = {"higher": " ↑", "lower": " ↓"}
    better = {name: arrows.get(entry.metrics[name][1] or "", "") for entry in entries for name in entry.metrics}
    headings = [readable(name.replace("/", " ")) + better[name] for name in shown]
    hidden = [f"further metrics: {', '.join(list(metrics)[_METRICS:])}"] if len(metrics) > _METRICS else []
    return Table(["run", "state", "step", "loss", *headings, "differs in"], rows, [*notes, *hidden])


def _value(entry: Entry, key: str) -> str:
    value = entry.config.get(key)
    return value if isinstance(value, str) else json.dumps(value)


def _cell(metrics: Mapping[str, tuple[float, str | None]], name: str) -> str:
    metric = name.rpartition("/")[2]
    return format_metric(metric, {metric: metrics[name][0]}) if name in metrics else ""
