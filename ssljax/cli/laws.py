"""The command `fit`: a law fitted to a table of runs."""

import argparse
import ast
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from ssljax.base.errors import UserError
from ssljax.cli.arguments import Overrides

CLOSE = 12  # lines of forecasts that are printed


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    fit = commands.add_parser("fit", help="fit a scaling law to a table of runs, with intervals and forecasts")
    fit.set_defaults(call=_fit)
    fit.add_argument("table", help="CSV file with columns params, tokens, loss, ... in units; or a study, STORE/STUDY")
    fit.add_argument("--law", required=True, help="name of a law (`ssljax list laws`), or package.module:Class")
    fit.add_argument("--out", help="folder for fit.json, fit.png, fit.html; without it the result is only printed")
    fit.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="option of the law; repeatable")
    fit.add_argument(
        "--column", action="append", default=[], metavar="NAME=HEADER", help="name of a column in the table; repeatable"
    )
    fit.add_argument("--cluster", metavar="COLUMN", help="groups of the clustered bootstrap (default: run or budget)")
    fit.add_argument("--order", metavar="COLUMN", help="what separates past from future (default: budget or the sizes)")
    fit.add_argument("--resample", choices=("cases", "clusters", "residuals"), help="the bootstrap of the intervals")
    fit.add_argument("--bootstrap", type=int, default=1000, help="number of refits (default 1000)")
    fit.add_argument("--level", type=float, default=0.9, help="level of the intervals (default 0.9)")
    fit.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    fit.add_argument("--flops", type=float, action="append", default=[], help="print the best run of this budget")
    fit.add_argument("--next-run", type=float, metavar="BUDGET", help="print the most informative run of this budget")


def _fit(options: argparse.Namespace, overrides: Overrides) -> int:
    from ssljax import scaling

    fit = scaling.fit(
        options.law,
        options.table,
        columns=dict(_pairs("--column", options.column)),
        cluster=options.cluster,
        order=options.order,
        resample=options.resample,
        bootstrap=options.bootstrap,
        level=options.level,
        seed=options.seed,
        **{key: _value(text) for key, text in _pairs("--option", options.option)},
    )
    for line in describe(fit, options.flops, options.next_run):
        print(line)
    if options.out:
        folder = pathlib.Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        fit.to_json(folder / "fit.json")
        fit.plot(folder / "fit.png")
        fit.page(folder / "fit.html")
        print("written: " + ", ".join(str(folder / f"fit.{suffix}") for suffix in ("json", "png", "html")))
    return 0


def _pairs(option: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"{option} {word}: must be of the form key=value")
        yield key, value


def _value(text: str) -> Any:
    """The value of an option: a Python literal, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def describe(fit: Any, budgets: Sequence[float] = (), next_run: float | None = None) -> Iterator[str]:
    """Yields the lines that describe a fit."""
    rows = fit.goodness["rows"]
    yield f"{fit.law} fitted to {rows:.0f} rows of {fit.source}"
    kinds = list(fit.intervals)
    heads = [f"{fit.level:.0%} ({kind})" for kind in kinds]
    yield f"{'':18}{'estimate':>12}{'std. error':>12}" + "".join(f"{head:>28}" for head in heads)
    for name, value in {**fit.parameters, **fit.derived}.items():
        spans = (fit.intervals[kind][name] for kind in kinds)
        shown = "".join(f"{f'{low:.4g} to {high:.4g}':>28}" for low, high in spans)
        yield f"{name:18}{value:>12.5g}{fit.standard_errors[name]:>12.3g}{shown}"
    yield f"standard errors: bootstrap over {fit.resample}, {len(fit.samples)} refits"
    for source, values in fit.rule.published.items():
        yield f"published by {source}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    good = fit.goodness
    yield (
        f"residuals: rmse {good['rmse']:.3g}, median {good['median']:.3g}, r2 {good['r2']:.5f}, "
        f"minimised sum {good['loss']:.4g}; condition of the covariance {fit.condition:.2g}"
    )
    for budget in budgets:
        best = ", ".join(f"{name} {value}" for name, value in fit.optimal(flops=budget).items())
        beyond = budget / fit.rule.size(fit.columns).max()
        yield f"best run of {budget:.3g} FLOPs, {beyond:.3g} times the largest run of the table: {best}"
    if next_run is not None:
        run = fit.next_run(next_run)
        sizes = ", ".join(f"{name} {value:.3g}" for name, value in run.columns.items())
        yield f"next run of {next_run:.3g}: {sizes}; predicted {run.predicted}"
        yield f"  standard error of {run.quantity}: {run.before:.3g} now, {run.after:.3g} expected with it"
    if fit.forecasts:
        yield "forecasts, each from the smaller runs only:"
        for line in fit.forecasts[-CLOSE:]:
            yield (
                f"  up to {line.upto:.3g} ({line.fitted} rows) -> {line.to:.3g}: rms error {line.error:.3g}, "
                f"bias {line.bias:+.3g}, {line.inside:.0%} of {line.predicted} inside {fit.level:.0%}"
            )
    for warning in fit.warnings:
        yield f"warning: {warning}"
