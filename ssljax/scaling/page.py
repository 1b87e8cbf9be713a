"""The page of a fit: interactive pictures and tables in one HTML file that needs no network. Plotly draws them."""

import pathlib
from typing import Any

import jinja2
import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.files import replacing
from ssljax.scaling.laws.optima import Optima
from ssljax.scaling.plots import BEYOND, frontier, minima, smooth

POINTS = 60  # points of a curve
COLORS = ("#1f5fa8", "#b3261e", "#2a7d3f", "#8a5a00", "#6a3d9a", "#00707a")
SIDE = 50  # points of a side of the contours

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .2em .8em; text-align: right; }
td:first-child, th:first-child { text-align: left; } th { border-bottom: 1px solid #999; font-weight: 600; }
.grid > div { min-width: 0; } .grid { display: grid; grid-template-columns: 1fr 1fr; }
@media (max-width: 60em) { .grid { display: block; } }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
{% for warning in warnings %}<p>&#9888; {{ warning }}</p>{% endfor %}
<div class="grid">{% for picture in pictures %}<div>{{ picture | safe }}</div>{% endfor %}</div>
{% for name, head, rows in tables %}<h2>{{ name }}</h2>
<table><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endfor %}
</body></html>
"""


def write_page(fit: Any, path: pathlib.Path) -> pathlib.Path:
    """Writes the page of a fit, and returns its path.

    Args:
        fit: a `ssljax.scaling.Fit`.
        path: file with the suffix .html.

    Raises:
        UserError: another suffix.
    """
    if path.suffix.lower() != ".html":
        raise UserError(f"{path}: must end with .html")
    import plotly.io

    figures = [_runs(fit), *_inside(fit), _residuals(fit), _intervals(fit)]
    pictures = []
    for number, figure in enumerate(figures):
        figure.update_layout(height=430, margin={"l": 60, "r": 20, "t": 50, "b": 110}, template="simple_white")
        figure.update_layout(legend={"orientation": "h", "y": -0.22, "yanchor": "top"})
        shown = {"responsive": True, "displaylogo": False, "displayModeBar": "hover"}
        pictures.append(plotly.io.to_html(figure, config=shown, full_html=False, include_plotlyjs=number == 0))
    good = fit.goodness
    text = (
        jinja2.Environment(autoescape=True)
        .from_string(_TEMPLATE)
        .render(
            title=f"{fit.law}, {pathlib.Path(fit.source).name}",
            summary=f"{good['rows']:.0f} rows; residuals: rms {good['rmse']:.3g}, r2 {good['r2']:.5f}; condition of "
            f"the covariance {fit.condition:.2g}; refits: {len(fit.samples)}, {fit.resample}",
            warnings=fit.warnings,
            pictures=pictures,
            tables=_tables(fit),
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as whole:
        whole.write_text(text, encoding="utf-8")
    return path


def _tables(fit: Any) -> list[tuple[str, list[str], list[list[str]]]]:
    """Parameters, forecasts and runs as (name, heads, rows)."""
    parameters = []
    for name, value in {**fit.parameters, **fit.derived}.items():
        low, high = fit.intervals[fit.resample][name]
        published = "; ".join(f"{own[name]:.4g} ({who})" for who, own in fit.rule.published.items() if name in own)
        cells = (f"{value:.5g}", f"{fit.standard_errors[name]:.3g}", f"{low:.4g} to {high:.4g}")
        parameters.append([name, *cells, published])
    forecasts = [
        [f"{f.upto:.3g}", f"{f.fitted}", f"{f.to:.3g}", f"{f.error:.3g}", f"{f.bias:+.3g}", f"{f.inside:.0%}"]
        for f in fit.forecasts
    ]
    at, values = fit.points
    runs = [
        [str(number), *(f"{at[name][i]:.4g}" for name in at), f"{values[i]:.5g}", f"{residual:+.3g}"]
        for i, (number, residual) in enumerate(zip(_numbers(fit), fit.residuals[: len(next(iter(at.values())))]))
    ]
    level = f"{fit.level:.0%}"
    return [
        ("Parameters", ["", "estimate", "standard error", f"{level} interval", "published"], parameters),
        ("Forecasts from smaller runs", ["up to", "rows", "to", "rms error", "bias", f"inside {level}"], forecasts),
        ("Rows", ["row", *at, fit.rule.outputs[0].name, "residual"], runs),
    ]


def _numbers(fit: Any) -> list[Any]:
    """Names of the points of a fit: rows of the table, or groups of a law of optima."""
    count = len(next(iter(fit.points[0].values())))
    return list(fit.rows) if len(fit.rows) == count else list(range(count))


def _hover(fit: Any) -> list[str]:
    at, _ = fit.points
    return [
        "<br>".join([f"row {number}", *(f"{name} {at[name][i]:.4g}" for name in at)])
        for i, number in enumerate(_numbers(fit))
    ]


def _log(values: np.ndarray) -> str:
    return "log" if (values > 0).all() and values.max() > BEYOND * values.min() else "linear"


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray, name: str) -> Any:
    import plotly.graph_objects as go

    y = np.concatenate([high, low[::-1]])
    style = {"fill": "toself", "line": {"width": 0}, "fillcolor": "rgba(179,38,30,.18)", "hoverinfo": "skip"}
    return go.Scatter(x=np.concatenate([x, x[::-1]]), y=y, name=name, **style)


def _runs(fit: Any) -> Any:
    """Observations against compute, or against the first column of the law, with the law and its interval."""
    import plotly.graph_objects as go

    (at, values), level = fit.points, f"{fit.level:.0%} interval"
    figure, name = go.Figure(), fit.rule.asked[0]
    compute = {"params", "tokens"} <= set(fit.rule.asked)
    x = 6 * at["params"] * at["tokens"] if compute else at[name]
    own = values[: len(x)]
    marker = {"color": np.log10(at["params"]), "colorbar": {"title": "log10 params"}} if compute else {}
    figure.add_scatter(x=x, y=own, mode="markers", name="runs", text=_hover(fit), marker=marker)
    if compute and (best := frontier(fit, budgets := np.geomspace(x.min(), x.max() * BEYOND, POINTS // 2))):
        value, low, high = (np.array([getattr(b["loss"], side) for b in best]) for side in ("value", "lower", "upper"))
        figure.add_trace(_band(budgets, low, high, level))
        figure.add_scatter(x=budgets, y=value, mode="lines", name="best runs by the law")
    elif not compute:
        line = np.geomspace(x.min(), x.max(), POINTS) if _log(x) == "log" else np.linspace(x.min(), x.max(), POINTS)
        inputs = {key: line if key == name else np.full(POINTS, np.median(v)) for key, v in at.items()}
        found = fit.predict(inputs)
        figure.add_trace(_band(line, found.lower[:POINTS], found.upper[:POINTS], level))
        figure.add_scatter(x=line, y=found.value[:POINTS], mode="lines", name="law")
    figure.update_xaxes(type=_log(x), title="FLOPs = 6 params tokens" if compute else name)
    sought = isinstance(fit.rule, Optima)
    figure.update_yaxes(type=_log(own), title=f"best {fit.rule.sought}" if sought else fit.rule.outputs[0].name)
    return figure.update_layout(title="Runs and law")


def _inside(fit: Any) -> list[Any]:
    """Contours of a law of params and tokens, or the curves of the groups of a law of optima."""
    if {"params", "tokens"} <= set(fit.rule.asked):
        return [_contours(fit)]
    return [_groups(fit)] if isinstance(fit.rule, Optima) else []


def _contours(fit: Any) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    params, tokens = fit.columns["params"], fit.columns["tokens"]
    x, y = (np.geomspace(v.min() / 2, v.max() * BEYOND, SIDE) for v in (params, tokens))
    grid = {"params": np.tile(x, SIDE), "tokens": np.repeat(y, SIDE)}
    grid |= {n: np.full(SIDE**2, np.median(v)) for n, v in fit.columns.items() if n not in grid}
    loss = fit.rule.predict(fit.estimate, grid).reshape(SIDE, SIDE)
    figure.add_contour(x=x, y=y, z=loss, contours={"coloring": "lines"}, name="loss")
    figure.add_scatter(x=params, y=tokens, mode="markers", text=_hover(fit), name="runs")
    if best := frontier(fit, np.geomspace(6 * x[0] * y[0], 6 * x[-1] * y[-1], POINTS // 2)):
        sizes, lengths = ([b[name].value for b in best] for name in ("params", "tokens"))
        figure.add_scatter(x=sizes, y=lengths, mode="lines", name="efficient frontier")
    figure.update_xaxes(type="log", title="params", range=np.log10(x[[0, -1]]).tolist())
    figure.update_yaxes(type="log", title="tokens", range=np.log10(y[[0, -1]]).tolist())
    return figure.update_layout(title="Loss by the law")


def _groups(fit: Any) -> Any:
    import plotly.graph_objects as go

    law, figure = fit.rule, go.Figure()
    groups, fitted = law.groups(fit.columns), law.fitted(fit.columns, fit.observed, fit.estimate)
    at = fit.columns[law.sought]
    for group in range(groups.max() + 1):
        rows = np.flatnonzero(groups == group)
        rows = rows[np.argsort(at[rows])]
        color = COLORS[group % len(COLORS)]
        given = {"legendgroup": str(group), "name": f"group {group + 1}"}
        dots = {"mode": "markers", "marker": {"color": color}, "showlegend": False}
        figure.add_scatter(x=at[rows], y=fit.observed[rows], **dots, **given)
        x, y = smooth(law, at[rows], fitted[rows])
        figure.add_scatter(x=x, y=y, mode="lines", line={"color": color}, **given)
    for group, at_best, low, high, lowest in minima(fit) if law.parabolic else ():
        bar = {"type": "data", "array": [max(high - at_best, 0)], "arrayminus": [max(at_best - low, 0)]}
        cross = {"mode": "markers", "marker": {"color": "black", "symbol": "cross"}, "showlegend": False}
        figure.add_scatter(x=[at_best], y=[lowest], error_x=bar, name="minimum", legendgroup=str(group), **cross)
    figure.update_xaxes(type="log", title=law.sought)
    return figure.update_yaxes(title=law.outputs[0].name).update_layout(title="Groups and their curves")


def _residuals(fit: Any) -> Any:
    import plotly.graph_objects as go

    at, _ = fit.points
    size = fit.rule.size(at) if set(fit.columns) <= set(at) else at[fit.rule.asked[0]]
    figure = go.Figure()
    for part in np.split(fit.residuals, len(fit.residuals) // len(size)):
        figure.add_scatter(x=size, y=part, mode="markers", text=_hover(fit), name="residual", showlegend=False)
    figure.add_hline(y=0, line_width=1)
    figure.update_xaxes(type=_log(size), title="size")
    kind = "log observed - log predicted" if fit.rule.residual == "log" else "observed - predicted"
    return figure.update_yaxes(title=kind).update_layout(title="Residuals")


def _intervals(fit: Any) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, value in {**fit.parameters, **fit.derived}.items():
        if not value:
            continue
        low, high = sorted(bound / value for bound in fit.intervals[fit.resample][name])
        bar = {"type": "data", "array": [high - 1], "arrayminus": [1 - low]}
        figure.add_scatter(x=[1], y=[f"{name} = {value:.3g}"], error_x=bar, mode="markers", showlegend=False)
    ends = [bound / value for n, value in fit.parameters.items() if value for bound in fit.intervals[fit.resample][n]]
    figure.update_xaxes(range=[max(min(ends, default=0) - 0.1, -1), min(max(ends, default=2) + 0.1, 3)])
    title = f"{fit.level:.0%} intervals, relative to the estimates"
    return figure.update_layout(title=title)
