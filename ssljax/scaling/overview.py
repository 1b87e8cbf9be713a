"""Tables of a study: what is planned, what became of each run, and a live view."""

import datetime
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssljax.report.table import Table, format_metric, readable
from ssljax.scaling.ledger import STATES, Ledger, Row

if TYPE_CHECKING:
    import rich.console

    from ssljax.scaling.cost import Cost
    from ssljax.scaling.study import Study

_METRICS = 3  # largest number of metrics that are columns


def status(ledger: Ledger, study: str | None = None) -> Table:
    """Returns a row for each run of a study, or of all studies: state, step, loss, metrics, time and reason."""
    rows = [current(ledger, row) for row in ledger.rows(study)]
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))[:_METRICS]
    several = len({row.study for row in rows}) > 1
    names = [row.name if not several else f"{row.study}/{row.name}" for row in rows]
    cells = []
    for name, row in zip(names, rows):
        shown = [format_metric(metric.rpartition("/")[2], _last_part(row.metrics, metric)) for metric in metrics]
        loss = "" if row.loss is None else f"{row.loss:.4g}"
        steps = f"{row.step:,} / {row.steps:,}"
        cells.append([name, row.state, steps, loss, *shown, span_text(_seconds(row)), _where(row), row.why])
    headings = [readable(metric.replace("/", " ")) for metric in metrics]
    return Table(["run", "state", "step", "loss", *headings, "time", "host", "why"], cells, [summary(rows)])


def current(ledger: Ledger, row: Row) -> Row:
    """Returns a row with step and loss of the files of a run that is not done, which the ledger learns at its end."""
    if row.state in ("running", "planned"):
        step, loss = ledger.progress(row.hash)
        return row if not step else Row(**{**vars(row), "step": step, "loss": loss})
    return row


def summary(rows: Sequence[Row]) -> str:
    """Returns one sentence on all runs: "9 runs: 7 done, 1 failed, 1 planned; 3.2e+12 FLOPs in 12 min"."""
    unique = list({row.hash: row for row in rows}.values())
    counts = Counter(row.state for row in unique)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    flops = sum((row.flops or 0.0) * min(1.0, row.step / row.steps) for row in unique if row.steps)
    seconds = sum(row.seconds for row in unique)
    spent = f"; {flops:.3g} FLOPs in {span_text(seconds)} of trainers" if seconds else ""
    return f"{len(unique)} runs: {states or 'none'}{spent}"


def _last_part(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """Returns {metric: value} for "evaluation/metric"; {} without a value."""
    return {name.rpartition("/")[2]: metrics[name]} if name in metrics else {}


def _seconds(row: Row) -> float:
    since = row.started if row.state == "running" and not row.seconds else None
    return row.seconds if since is None else time.time() - since


def _where(row: Row) -> str:
    return f"{row.host}:{row.pid}" if row.state == "running" else row.host or ""


def span_text(seconds: float) -> str:
    """Returns a time for readers, "1:02:03" or "45 s"; "" for 0."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds else ""
    return str(datetime.timedelta(seconds=round(seconds)))


def planned(study: "Study", costs: "Mapping[str, Cost]", known: Sequence[Row] = ()) -> Table:
    """Returns what a study would train: sizes, lengths, FLOPs, bytes of checkpoints, and the time where it is known.

    FLOPs and time of a run that continues another one are those of its own steps.

    Args:
        study: the study.
        costs: costs by hash.
        known: runs of the store; the speed of those that are done predicts the time of the others.
    """
    rates = [row.flops / row.seconds for row in known if row.state == "done" and row.flops and row.seconds]
    rate = statistics.median(rates) if rates else None
    states = {row.hash: row.state for row in known}
    rows, total, left = [], 0.0, 0.0
    for run in study.runs:
        cost = costs[run.hash]
        before = costs[run.parent].flops or 0.0 if run.parent else 0.0
        flops = (cost.flops or 0.0) - before  # what it continues is trained once
        total += flops
        left += 0.0 if states.get(run.hash) == "done" else flops
        length = f"{cost.tokens:,} tokens" if cost.tokens else f"{cost.examples:,} examples"
        predicted = span_text(flops / rate) if rate and flops else ""
        numbers = [f"{cost.parameters:,}", f"{cost.steps:,}", length, f"{flops:.3g}" if flops else "unknown"]
        rows.append([run.name, states.get(run.hash, "new"), *numbers, f"{cost.state_bytes / 1e6:,.1f}", predicted])
    notes = [f"{len(rows)} runs, {total:.3g} FLOPs, {left:.3g} of them to do"]
    if rate:
        notes.append(f"time: FLOPs / {rate:.3g} per second, the median of {len(rates)} runs that are done here")
        notes[0] += f", about {span_text(left / rate)} of trainers"
    notes.append("MB: parameters, two moments and averages, without gradients and activations (`ssljax plan` has them)")
    return Table(["run", "state", "parameters", "steps", "length", "FLOPs", "MB", "time"], rows, notes)


class Live:
    """A context with a table on the terminal that `refresh` draws again, at most once a second."""

    def __init__(self, ledger: Ledger, study: str | None) -> None:
        import rich.live

        self._ledger, self._study, self._drawn = ledger, study, 0.0
        self._live = rich.live.Live(self._table(), auto_refresh=False)

    def _table(self) -> "rich.console.RenderableType":
        import rich.console
        import rich.table

        found = status(self._ledger, self._study)
        table = rich.table.Table(collapse_padding=True, pad_edge=False)
        for i, heading in enumerate(found.columns):
            table.add_column(heading, overflow="fold", no_wrap=i == 0)
        for row in found.rows:
            table.add_row(*row)
        return rich.console.Group(table, *found.notes)

    def refresh(self, at_once: bool = False) -> None:
        """Draws the table again."""
        if at_once or time.monotonic() - self._drawn > 1:
            self._drawn = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def __enter__(self) -> "Live":
        self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.refresh(at_once=True)
        self._live.stop()
