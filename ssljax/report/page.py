"""The report of a run: one self-contained HTML file."""

import importlib.resources
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ssljax.report import curves, facts, figures
from ssljax.report.figures import COLORS
from ssljax.report.read import Run, read_run
from ssljax.report.table import Table, evaluation_table


def render(workdir: str | pathlib.Path) -> str:
    """Draws the report of a run from the files in its workdir, as one HTML page.

    The page has the table of evaluations and controls, curves of metrics, a figure of the embedding, facts about the
    run, and the configuration. Figures, data and programs are embedded, so the page loads nothing from elsewhere.

    Raises:
        UserError: the folder is not a workdir, or a file in it is damaged.
    """
    run = read_run(workdir)
    table = evaluation_table(run.evals)
    return fill(
        title=facts.title(run),
        facts=facts.headline(run),
        table_heading="Evaluations and controls",
        table=table._replace(notes=[*table.notes, *_explained(table, run)]),
        sections=curves.sections([curves.Shown("trained", 0, run)]),
        figures=[*_figures(run), *run.pictures.figures],
        texts=run.pictures.texts,
        runs={run.workdir.name: facts.description(run)},
        config=json.dumps(run.config, indent=2),
        data=json.dumps(run.data, indent=2) if run.data else "",
    )


def fill(
    *,
    title: str,
    facts: Sequence[str],
    table_heading: str,
    table: Table,
    sections: Sequence[curves.Section],
    figures: Sequence[tuple[str, str, str]] = (),
    texts: Sequence[Mapping[str, Any]] = (),
    runs: Mapping[str, Mapping[str, str]],
    config: str,
    data: str = "",
) -> str:
    """Fills the template of a page.

    Args:
        title, facts: heading, and the line below it.
        table_heading, table: the table of evaluations.
        sections: the curves.
        figures: (heading, data URI, caption) of each figure.
        texts: see `report.pictures.Shown`.
        runs: name of each run -> {name: text} of the facts about it.
        config, data: JSON texts; "": none.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.from_string(_file("page.html")).render(
        title=title,
        facts=facts,
        table_heading=table_heading,
        table=table,
        sections=sections,
        curves=curves.page_data(sections),
        figures=figures,
        texts=texts,
        runs=runs,
        names=list(dict.fromkeys(name for own in runs.values() for name in own)),
        config=config,
        data=data,
        colors=COLORS,
        file=_file,
    )


def _file(name: str) -> str:
    """Returns the text of a file of the page that ships with the package."""
    return importlib.resources.files("ssljax.report").joinpath(name).read_text(encoding="utf-8")


def _figures(run: Run) -> list[tuple[str, str, str]]:
    """Returns (heading, data URI, caption) of each figure that the run has arrays for."""
    out = []
    if run.embedding:
        picture = figures.embedding(run.embedding, _names(run.data.get("classes")))
        colored = ", coloured by label" if "label" in run.embedding else ""
        out.append(("Embedding", picture, f"Features of held-out examples{colored}."))
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


def _explained(table: Table, run: Run) -> list[str]:
    """Returns a line on the controls of a table, and one on its spreads."""
    elements = run.data.get("elements") or ()
    raw = {"image": "the pixels themselves instead of features", "nodes": "the sum of the features of the nodes"}
    raw |= {"audio": "means and deviations of the bands of the spectrogram"}
    meanings = _CONTROLS | {"raw": next((raw[key] for key in raw if key in elements), _CONTROLS["raw"])}
    controls = [f"{name}: {meanings[name]}" for name in table.columns if name in meanings]
    spread = any("±" in cell for row in table.rows for cell in row)
    return ["; ".join(controls)] * bool(controls) + ["±: standard deviation over draws of labels"] * spread


def _names(classes: Any) -> list[str]:
    return [str(name) for name in classes] if isinstance(classes, list) else []
