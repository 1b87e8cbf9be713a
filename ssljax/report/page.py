"""The report of a run: one self-contained HTML file."""

import importlib.resources
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ssljax.report import figures
from ssljax.report.read import Run, read_run
from ssljax.report.table import Table, evaluation_table


def render(workdir: str | pathlib.Path) -> str:
    """Draws the report of a run from the files in its workdir, as one HTML page.

    The page has the table of evaluations and controls, curves of metrics, a figure of the embedding, and the
    configuration. Figures are embedded, so the page loads nothing from elsewhere.

    Raises:
        UserError: the folder is not a workdir, or a file in it is damaged.
    """
    run = read_run(workdir)
    table = evaluation_table(run.evals)
    return fill(
        title=_title(run),
        facts=_facts(run),
        table_heading="Evaluations and controls",
        table=table._replace(notes=[*table.notes, *_explained(table)]),
        figures=[*_figures(run), *run.pictures.figures],
        texts=run.pictures.texts,
        config=json.dumps(run.config, indent=2),
        data=json.dumps(run.data, indent=2) if run.data else "",
    )


def fill(
    *,
    title: str,
    facts: Sequence[str],
    table_heading: str,
    table: Table,
    figures: Sequence[tuple[str, str, str]],
    texts: Sequence[Mapping[str, Any]] = (),
    config: str,
    data: str = "",
) -> str:
    """Fills the template of a page.

    Args:
        title, facts: heading, and the line below it.
        table_heading, table: the table of evaluations.
        figures: (heading, data URI, caption) of each figure.
        texts: see `report.pictures.Shown`.
        config, data: JSON texts; "": none.
    """
    import jinja2

    template = importlib.resources.files("ssljax.report").joinpath("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=title,
        facts=facts,
        table_heading=table_heading,
        table=table,
        figures=figures,
        texts=texts,
        config=config,
        data=data,
    )


def _figures(run: Run) -> list[tuple[str, str, str]]:
    """Returns (heading, data URI, caption) of each figure that the run has numbers for."""
    logged = {k for line in run.metrics for k, v in line.items() if isinstance(v, int | float)}
    speed = [name for name in figures.SPEED if name in logged]
    own = {"loss", "learning_rate", *figures.COUNTERS, *figures.SPEED}
    health = sorted(k for k in logged - own if not k.startswith(("loss/", "skipped_steps")))
    out = []
    if "loss" in logged:
        out.append(
            ("Loss", figures.losses(run.metrics), "Training loss: each point is the mean since the previous point.")
        )
    if any(r["of"] == "trained" and r["headline"] for r in run.evals):
        caption = "Evaluations over training (solid lines) and their controls (dashed lines)."
        out.append(("Evaluations over training", figures.evaluations(run.evals), caption))
    if run.embedding:
        picture = figures.embedding(run.embedding, _names(run.data.get("classes")))
        out.append(("Embedding", picture, "Features of held-out examples, coloured by label."))
    if health:
        caption = "Metrics of the representation and of the objective."
        out.append(("Health", figures.curves(run.metrics, health), caption))
    rest = [name for name in ("learning_rate",) if name in logged] + speed
    if rest:
        out.append(
            ("Learning rate and speed", figures.curves(run.metrics, rest), "Learning rate and speed of the run.")
        )
    return out


# The controls of evaluations, for readers; a page explains those that it shows.
_CONTROLS = {
    "untrained": "the same model before training",
    "raw": "the input itself instead of features",
    "majority": "the most frequent class",
    "chance": "a random choice",
    "unigram": "frequencies of single tokens",
    "bigram": "frequencies of pairs of tokens",
}


def _explained(table: Table) -> list[str]:
    """Returns a line on the controls of a table, and one on its spreads."""
    controls = [f"{name}: {_CONTROLS[name]}" for name in table.columns if name in _CONTROLS]
    spread = any("±" in cell for row in table.rows for cell in row)
    return ["; ".join(controls)] * bool(controls) + ["±: standard deviation over draws of labels"] * spread


def _names(classes: Any) -> list[str]:
    return [str(name) for name in classes] if isinstance(classes, list) else []


def _title(run: Run) -> str:
    """Returns "OBJECTIVE on SOURCE", or the name of the folder."""
    objective = _get(run.config, "objective", "name")
    source = _get(run.config, "data", "source")
    return " on ".join(str(part) for part in (objective, source) if part) or run.workdir.name


def _facts(run: Run) -> list[str]:
    """Returns the facts below the title: model, steps, examples, time."""
    facts = [f"workdir {run.workdir.name}"]
    if name := _get(run.config, "model", "name"):
        facts.append(f"model {name}")
    if run.metrics:
        last = run.metrics[-1]
        facts.append(f"{last['step']:,} steps")
        if last.get("examples"):
            facts.append(f"{last['examples']:,} examples seen")
        if last.get("seconds"):
            facts.append(_duration(last["seconds"]))
        if skipped := last.get("skipped_steps"):
            facts.append(f"{skipped:,.0f} steps skipped as not finite")
    return facts


def _get(values: dict[str, Any], *keys: str) -> Any:
    """Returns a nested value; None if it is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None  # type: ignore[assignment]
    return values


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
