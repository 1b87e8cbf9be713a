"""Pictures of fits: data and law, residuals, influence of rows, forecasts. Matplotlib is imported on use."""

import pathlib
from typing import Any

import numpy as np
from scipy.special import ndtri

from ssljax.base.errors import UserError
from ssljax.base.files import replacing
from ssljax.scaling.bootstrap import residual_tables
from ssljax.scaling.laws.optima import Optima

SUFFIXES = (".png", ".svg", ".pdf")
BEYOND = 10.0  # curves go on beyond the data by this factor
STEPS = 80
REPEATS = 400  # tables of the bootstrap of the minima of parabolas
BLUE, RED, GREY = "#1f5fa8", "#b3261e", "#777777"


def draw(fit: Any, path: pathlib.Path) -> pathlib.Path:
    """Draws a fit on six panels and returns the path.

    Args:
        fit: a `ssljax.scaling.Fit`.
        path: file with the suffix .png, .svg or .pdf.

    Raises:
        UserError: another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: must end with {', '.join(SUFFIXES)}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 8.5), layout="constrained")
    panels = figure.subplots(2, 3)
    law = fit.rule
    if {"params", "tokens"} <= set(law.asked):
        _compute(fit, panels[0, 0])
        _contours(fit, panels[0, 1])
    else:
        _curve(fit, panels[0, 0])
        (_parabolas if isinstance(law, Optima) else _quantiles)(fit, panels[0, 1])
    _intervals(fit, panels[0, 2])
    _residuals(fit, panels[1, 0])
    _forecasts(fit, panels[1, 1])
    _influence(fit, panels[1, 2])
    figure.suptitle(f"{fit.law}: {fit.goodness['rows']:.0f} rows of {pathlib.Path(fit.source).name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as whole:
        figure.savefig(whole, format=path.suffix[1:].lower(), dpi=110)
    return path


def _curve(fit: Any, axes: Any) -> None:
    """Points and law over the first column that the prediction asks for, with the interval."""
    law, (at, values) = fit.rule, fit.points
    name = law.asked[0]
    log = bool((at[name] > 0).all())
    low, high = at[name].min(), at[name].max()
    x = np.geomspace(low, high * BEYOND, STEPS) if log and high / low > BEYOND else np.linspace(low, high, STEPS)
    inputs = {key: x if key == name else np.full(STEPS, np.median(v)) for key, v in at.items()}
    parts = len(law.outputs) if len(values) != len(at[name]) else 1
    found = fit.predict(inputs)
    for i, label in enumerate([c.name for c in law.outputs][:parts]):
        color, part = (BLUE, RED)[i % 2], slice(i * STEPS, (i + 1) * STEPS)
        own = values[i * len(at[name]) : (i + 1) * len(at[name])]
        axes.plot(at[name], own, ".", color=color, label=label if parts > 1 else "data")
        axes.plot(x, found.value[part], color=color, lw=1)
        axes.fill_between(x, found.lower[part], found.upper[part], color=color, alpha=0.2, lw=0)
    axes.set(xlabel=name, ylabel=law.outputs[0].name if not isinstance(law, Optima) else f"best {law.sought}")
    if log:
        axes.set_xscale("log")
    if law.residual == "log" and (values > 0).all():
        axes.set_yscale("log")
    axes.set_title(f"law with {fit.level:.0%} interval", fontsize=10)
    axes.legend(fontsize=8)


def _compute(fit: Any, axes: Any) -> None:
    """Loss against compute, with the loss of the best runs."""
    flops = 6 * fit.columns["params"] * fit.columns["tokens"]
    observed = fit.observed[: len(flops)]
    dots = axes.scatter(flops, observed, c=np.log10(fit.columns["params"]), s=12, cmap="viridis")
    axes.figure.colorbar(dots, ax=axes, label="log10 params")
    budgets = np.geomspace(flops.min(), flops.max() * BEYOND, 25)
    best = frontier(fit, budgets)
    if best:
        axes.plot(budgets, [b["loss"].value for b in best], color=RED, lw=1, label="best runs by the law")
        low, high = ([getattr(b["loss"], side) for b in best] for side in ("lower", "upper"))
        axes.fill_between(budgets, low, high, color=RED, alpha=0.2, lw=0)
        axes.legend(fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs = 6 params tokens", ylabel=fit.rule.outputs[0].name)
    axes.set_title("envelope", fontsize=10)


def frontier(fit: Any, budgets: np.ndarray) -> list[dict[str, Any]]:
    """Returns the best run of each budget; none if the law has no optimum."""
    try:
        return [fit.optimal(flops=budget) for budget in budgets]
    except UserError:
        return []


def _contours(fit: Any, axes: Any) -> None:
    """Predicted loss over params and tokens, with the runs and the efficient frontier."""
    params, tokens = fit.columns["params"], fit.columns["tokens"]
    x = np.geomspace(params.min() / 2, params.max() * BEYOND, 60)
    y = np.geomspace(tokens.min() / 2, tokens.max() * BEYOND, 60)
    grid = {"params": np.tile(x, 60), "tokens": np.repeat(y, 60)}
    grid |= {n: np.full(3600, np.median(v)) for n, v in fit.columns.items() if n not in grid}
    loss = fit.rule.predict(fit.estimate, grid).reshape(60, 60)
    lines = axes.contour(x, y, loss, levels=12, cmap="viridis", linewidths=1)
    axes.clabel(lines, fontsize=7)
    axes.plot(params, tokens, ".", color=GREY, ms=4)
    budgets = np.geomspace(6 * x[0] * y[0], 6 * x[-1] * y[-1], 25)
    if best := frontier(fit, budgets):
        axes.plot([b["params"].value for b in best], [b["tokens"].value for b in best], color=RED, lw=1)
    axes.set(xscale="log", yscale="log", xlabel="params", ylabel="tokens", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    axes.set_title("loss by the law, runs, efficient frontier", fontsize=10)


def _parabolas(fit: Any, axes: Any) -> None:
    """Losses of each group over the sought column, with the fitted curves, and minima with their intervals."""
    law = fit.rule
    groups, fitted = law.groups(fit.columns), law.fitted(fit.columns, fit.observed, fit.estimate)
    x = fit.columns[law.sought]
    for group in range(groups.max() + 1):
        rows = np.flatnonzero(groups == group)
        rows = rows[np.argsort(x[rows])]
        (dots,) = axes.plot(x[rows], fit.observed[rows], ".", ms=4)
        axes.plot(*smooth(law, x[rows], fitted[rows]), "-", lw=1, color=dots.get_color())
    for _, best, low, high, lowest in minima(fit) if law.parabolic else ():
        axes.errorbar([best], [lowest], xerr=[[max(best - low, 0)], [max(high - best, 0)]], fmt="k+", lw=1, capsize=2)
    axes.set(xscale="log", xlabel=law.sought, ylabel=law.outputs[0].name)
    axes.set_title("groups", fontsize=10)


def smooth(law: Any, x: np.ndarray, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a curve through fitted values at sorted x: the parabola over log x, or the values themselves."""
    if not law.parabolic or len(np.unique(x)) < 3:
        return x, fitted
    line = np.geomspace(x[0], x[-1], STEPS)
    return line, np.polyval(np.polyfit(np.log(x), fitted, 2), np.log(line))


def minima(fit: Any) -> list[tuple[int, float, float, float, float]]:
    """Returns (group, best value, ends of its interval, outcome) of each group of a law of parabolas with a minimum.

    Intervals are percentiles over those tables of the wild bootstrap in which the group has a minimum, at the level of
    the fit; NaN if there is none.
    """
    law, rng = fit.rule, np.random.default_rng(0)
    drawn = residual_tables(law, fit.columns, fit.observed, fit.estimate, REPEATS, rng)
    tables = np.concatenate([fit.observed[None], drawn])
    logs, _ = law.minima(fit.columns, tables, np.ones(tables.shape))
    groups, fitted = law.groups(fit.columns), law.fitted(fit.columns, fit.observed, fit.estimate)
    tail, out = (1 - fit.level) / 2, []
    for group in np.flatnonzero(np.isfinite(logs[0])):
        rows = groups == group
        curve = np.polyfit(np.log(fit.columns[law.sought][rows]), fitted[rows], 2)
        found = logs[1:, group][np.isfinite(logs[1:, group])]
        low, high = np.exp(np.quantile(found, (tail, 1 - tail))) if len(found) else (np.nan, np.nan)
        out.append((int(group), float(np.exp(logs[0, group])), low, high, float(np.polyval(curve, logs[0, group]))))
    return out


def _intervals(fit: Any, axes: Any) -> None:
    """Intervals of the parameters relative to the estimates, with published values that are near."""
    spans = [(n, fit.intervals[fit.resample][n], v) for n, v in {**fit.parameters, **fit.derived}.items() if v]
    for i, (_, (low, high), value) in enumerate(spans):
        axes.plot([low / value, high / value], [i, i], color=BLUE)
        axes.plot([1], [i], "o", color=BLUE, ms=4)
    low, high = axes.get_xlim()
    low, high = axes.set_xlim(max(low, -1), min(high, 3))  # an interval that goes on beyond says nothing
    for (source, values), mark in zip(fit.rule.published.items(), "xd+"):
        ratios = [(values[name] / value, i) for i, (name, _, value) in enumerate(spans) if name in values]
        near = [(ratio, i) for ratio, i in ratios if low - (high - low) < ratio < high + (high - low)]
        if near:
            axes.plot(*zip(*near), mark, color=RED, label=source)
            axes.legend(fontsize=8)
    axes.set_yticks(range(len(spans)), [f"{name} = {value:.3g}" for name, _, value in spans])
    axes.set(xlabel=f"{fit.level:.0%} interval / estimate")
    axes.set_title("parameters, and published values", fontsize=10)


def _quantiles(fit: Any, axes: Any) -> None:
    """Sorted residuals against those of a normal distribution."""
    residuals = np.sort(fit.residuals)
    normal = ndtri((np.arange(len(residuals)) + 0.5) / len(residuals)) * fit.goodness["rmse"]
    axes.plot(normal, residuals, ".", color=BLUE)
    axes.axline((0, 0), slope=1, color=GREY, lw=1)
    axes.set(xlabel="residual of a normal distribution", ylabel="residual")
    axes.set_title("distribution of the residuals", fontsize=10)


def _residuals(fit: Any, axes: Any) -> None:
    at, _ = fit.points
    size = fit.rule.size(at) if set(fit.columns) <= set(at) else at[fit.rule.asked[0]]
    residuals = fit.residuals
    axes.axhline(0, color=GREY, lw=1)
    for part in np.split(residuals, len(residuals) // len(size)):
        axes.plot(size, part, ".")
    if (size > 0).all() and size.max() > BEYOND * size.min():
        axes.set_xscale("log")
    kind = "log observed - log predicted" if fit.rule.residual == "log" else "observed - predicted"
    axes.set(xlabel="size", ylabel=kind)
    axes.set_title(f"residuals (rmse {fit.goodness['rmse']:.3g})", fontsize=10)


def _forecasts(fit: Any, axes: Any) -> None:
    """Errors of the forecasts from smaller runs."""
    axes.set_title("forecasts, each from the smaller runs only", fontsize=10)
    if not fit.forecasts:
        axes.text(0.5, 0.5, "too few sizes", ha="center", transform=axes.transAxes)
        return
    upto = [line.to for line in fit.forecasts]
    axes.axhline(0, color=GREY, lw=1)
    axes.errorbar(upto, [f.bias for f in fit.forecasts], [f.error for f in fit.forecasts], fmt="o", color=BLUE, ms=4)
    if min(upto) > 0:
        axes.set_xscale("log")
    axes.set(xlabel="size of the predicted runs", ylabel="mean error, bar: rms error")


def _influence(fit: Any, axes: Any) -> None:
    """Change of a parameter without a row, in standard errors."""
    axes.stem(range(len(fit.influence)), np.nan_to_num(fit.influence), basefmt=" ")
    axes.set(xlabel="row", ylabel="largest change, in standard errors of the rest")
    axes.set_title("influence of single rows", fontsize=10)
