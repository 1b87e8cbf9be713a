"""The table of evaluations beside their controls, for the console and the page."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# The order in which controls are shown; others follow by name.
ORDER = ("trained", "untrained", "raw", "majority", "chance", "unigram", "bigram")


class Table(NamedTuple):
    """Columns and rows of text; `notes` are lines to print below."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def evaluation_table(records: Iterable[Mapping[str, Any]]) -> Table:
    """One row for each headline metric of each evaluation: the trained model's latest value beside each control's.

    Args:
        records: lines of evals.jsonl (`ssljax.evals.Evaluator.records`), in the order they were written.

    Returns:
        Table with the columns evaluation, metric, trained, the controls that occur, verdict. The verdict says which
        controls are not beaten. The notes say how each evaluation was made, then what it warns of.
    """
    latest: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        of = latest.setdefault(record["eval"], {})
        if record["of"] not in of or record["step"] >= of[record["of"]]["step"]:
            of[record["of"]] = record
    seen = {of for subjects in latest.values() for of in subjects}
    subjects = [of for of in ORDER if of in seen] + sorted(seen - set(ORDER))
    rows, notes = [], []
    for name, found in latest.items():
        shown = found.get("trained") or next(iter(found.values()))
        notes += [f"{name}: {details}"] if (details := _details(shown)) else []
        for metric in shown["headline"]:
            label = name if metric == shown["headline"][0] else ""
            values = {of: found[of]["metrics"] for of in subjects if of in found}
            cells = [format_metric(metric, values.get(of, {})) for of in subjects]
            rows.append([label, readable(metric), *cells, _verdict(metric, values, shown["better"])])
    warnings = {f"{r['eval']}: {r['warning']}": None for of in latest.values() for r in of.values() if r.get("warning")}
    return Table(["evaluation", "metric", *subjects, "verdict"], rows, [*notes, *warnings])


def is_share(metric: str) -> bool:
    """Whether a metric is a fraction of examples, shown in per cent."""
    return metric.startswith("accuracy") or re.search(r"_r\d+$", metric) is not None


def readable(metric: str) -> str:
    """`image_to_text_r5` -> `image to text R@5`."""
    return re.sub(r"_r(\d+)$", r" R@\1", metric).replace("_", " ").replace("top5", "top 5")


def format_metric(metric: str, metrics: Mapping[str, Any]) -> str:
    """A value with its standard deviation over draws; shares in per cent; "" where it was not measured."""
    if metric not in metrics:
        return ""
    value, spread = metrics[metric], metrics.get(f"{metric}_std")
    if value is None or not math.isfinite(value):
        return "not finite"
    if is_share(metric):
        return f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "") + " %"
    return f"{value:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")


def _details(record: Mapping[str, Any]) -> str:
    sizes = record.get("sizes", {})
    summary = [record["summary"]] if record.get("summary") else []
    return ", ".join(summary + [f"{split} {size:,}" for split, size in sizes.items()])


def _verdict(metric: str, values: Mapping[str, Mapping[str, Any]], better: str) -> str:
    own = values.get("trained", {}).get(metric)
    controls = {of: v[metric] for of, v in values.items() if of != "trained" and v.get(metric) is not None}
    if own is None or not controls:
        return ""
    beaten = {of: own > v if better == "higher" else own < v for of, v in controls.items()}
    lost = [of for of, won in beaten.items() if not won]
    return "beats all" if not lost else f"does not beat {', '.join(lost)}"


def print_table(table: Table) -> None:
    """Prints a table and its notes on the console."""
    import rich.console
    import rich.table

    shown = rich.table.Table(*table.columns)
    for row in table.rows:
        shown.add_row(*row)
    console = rich.console.Console()
    console.print(shown)
    for note in table.notes:
        console.print(note)
