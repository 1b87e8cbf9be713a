"""The table of evaluations and their controls, for the console and the page."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# The order of columns; other controls follow in alphabetical order.
ORDER = ("trained", "untrained", "raw", "majority", "chance", "unigram", "bigram")


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        columns: headings.
        rows: cells, one text for each column.
        notes: lines below the table.
    """

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def evaluation_table(records: Iterable[Mapping[str, Any]]) -> Table:
    """Returns a table with a row for each headline metric of each evaluation.

    Args:
        records: lines of evals.jsonl (`ssljax.evals.Evaluator.records`), in the order of writing.

    Returns:
        A table with the columns evaluation, metric, trained, one column per control, and verdict. Cells are the latest
        values. The verdict names the controls that the trained model does not beat. The notes give the settings of the
        evaluations, then their warnings.
    """
    latest: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        of = latest.setdefault(record["eval"], {})
        if record["of"] not in of or record["step"] >= of[record["of"]]["step"]:
            of[record["of"]] = record
    names = {of for records_of in latest.values() for of in records_of}
    subjects = [of for of in ORDER if of in names] + sorted(names - set(ORDER))
    rows, notes = [], []
    for name, records_of in latest.items():
        shown = records_of.get("trained") or next(iter(records_of.values()))
        notes += [f"{name}: {details}"] if (details := _details(shown)) else []
        for metric in shown["headline"]:
            label = name if metric == shown["headline"][0] else ""
            values = {of: records_of[of]["metrics"] for of in subjects if of in records_of}
            cells = [format_metric(metric, values.get(of, {})) for of in subjects]
            rows.append([label, readable(metric), *cells, _verdict(metric, values, direction(shown, metric))])
    warnings = {f"{r['eval']}: {r['warning']}": None for of in latest.values() for r in of.values() if r.get("warning")}
    return Table(["evaluation", "metric", *subjects, "verdict"], rows, [*notes, *warnings])


def direction(record: Mapping[str, Any], metric: str) -> str | None:
    """Returns the better direction of a shown metric, "higher" or "lower"; None: neither is better."""
    return record.get("directions", {}).get(metric, record["better"])


def is_share(metric: str) -> bool:
    """Returns True if a metric is a share, of examples or of time for example, which is shown in per cent."""
    return (
        metric.startswith("accuracy")
        or metric in ("mfu", "data_wait_share", "host_share")
        or bool(re.search(r"_r\d+$", metric))
    )


def readable(metric: str) -> str:
    """Returns the name of a metric for readers: `image_to_text_r5` -> `image to text R@5`."""
    return re.sub(r"_r(\d+)$", r" R@\1", metric).replace("_", " ").replace("top5", "top 5")


def format_metric(metric: str, metrics: Mapping[str, Any]) -> str:
    """Returns a value with its standard deviation over draws, shares in per cent; "" if it was not measured."""
    if metric not in metrics:
        return ""
    value, spread = metrics[metric], metrics.get(f"{metric}_std")
    if value is None or not math.isfinite(value):
        return "not finite"
    if is_share(metric):
        return f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "") + " %"
    return f"{value:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")


def _details(record: Mapping[str, Any]) -> str:
    """Returns the settings of an evaluation and the sizes of its splits."""
    summary = [record["summary"]] if record.get("summary") else []
    left_out = record.get("left_out", {})
    for split, size in record.get("sizes", {}).items():
        summary.append(f"{split} {size:,}" + (f" ({left_out[split]:,} left out)" if split in left_out else ""))
    return ", ".join(summary)


def _verdict(metric: str, values: Mapping[str, Mapping[str, Any]], better: str | None) -> str:
    """Returns "beats all", or the controls that are at least as good; "" without controls or without a direction."""
    own = values.get("trained", {}).get(metric)
    controls = {of: v[metric] for of, v in values.items() if of != "trained" and v.get(metric) is not None}
    if own is None or not controls or better is None:
        return ""
    beaten = {of: own > v if better == "higher" else own < v for of, v in controls.items()}
    not_beaten = [of for of, won in beaten.items() if not won]
    return "beats all" if not not_beaten else f"does not beat {', '.join(not_beaten)}"
