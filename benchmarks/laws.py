"""Fits of the published tables of runs beside vpnls, if it is installed; writes a table of docs/laws.md.

    python benchmarks/laws.py             # needs SSLJAX_DATA, and a quiet machine
    python benchmarks/laws.py --print     # changes no page

vpnls (pip install --target FOLDER vpnls, then PYTHONPATH=FOLDER) fits the same law to the same rows in the same
process. Times are the best of three. Also timed: 4,000 bootstrap refits of the 240 points.
"""

import argparse
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pages import fill, markdown

from ssljax import scaling
from ssljax.scaling.fitting import huber
from ssljax.scaling.laws import create
from ssljax.scaling.laws.optima import Isoflop
from ssljax.scaling.table import numbers, read

PAGE = pathlib.Path(__file__).parent.parent / "docs/laws.md"
DELTA = 1e-3


def tables(folder: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """The 240 points and the isoFLOP studies: params, tokens, loss, and budget where it is given."""
    points = read(folder / "chinchilla_svg_extracted_data.csv")
    params, flops, loss = (numbers(points, name) for name in ("Model Size", "Training FLOP", "loss"))
    kept = np.argsort(loss)[:-5]  # the five of highest loss are left out, as by Besiroglu et al. 2024
    tokens = flops / 6 / params
    found = {"chinchilla, 240 points": {"params": params[kept], "tokens": tokens[kept], "loss": loss[kept]}}
    studies = read(folder / "isoflops_subset.csv")
    names = np.array(studies.columns["experiment"])
    for name in dict.fromkeys(names):
        columns = ("params", "tokens", "budget", "loss")
        found[str(name)] = {column: numbers(studies, column)[names == name] for column in columns}
    return found


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the shortest of three times in seconds, and the result."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def ours(table: dict[str, np.ndarray]) -> tuple[float, float]:
    """Returns the mean Huber loss of residuals of the loss, and the time of the fit."""
    law, columns = create("chinchilla", {"residual": "linear"}), {k: table[k] for k in ("params", "tokens")}
    ones = np.ones((1, len(table["loss"])))
    seconds, found = timed(lambda: law.estimate(columns, table["loss"][None], ones)[0])
    return float(huber(table["loss"] - law.predict(found, columns), DELTA).mean()), seconds


def vpnls(table: dict[str, np.ndarray]) -> tuple[float, float] | None:
    """Returns mean Huber loss and time of vpnls; None if it is not installed."""
    try:
        from vpnls.api import fit_vpnls
        from vpnls.api import huber as huber_of
    except ImportError:
        return None
    size, data = table["params"] / 1e6, table["tokens"] / 1e9
    run = lambda: fit_vpnls(size, data, table["loss"], resolution=0.01, loss=huber_of(DELTA))  # noqa: E731
    seconds, r = timed(run)
    predicted = r.E + r.A / size**r.alpha + r.B / data**r.beta
    return float(huber(table["loss"] - predicted, DELTA).mean()), seconds


def approaches(table: dict[str, np.ndarray]) -> list[str]:
    """Returns the exponent of the best size by the three approaches, with intervals, and the bias of the parabolas."""
    given = {"budget": 6 * table["params"] * table["tokens"], **table}
    cells = []
    for law, name in (("chinchilla_envelope", "a"), ("isoflop", "a"), ("chinchilla", "params_exponent")):
        fit = scaling.fit(law, given)
        low, high = fit.intervals[fit.resample][name]
        cells.append(f"{ {**fit.parameters, **fit.derived}[name]:.3f} ({low:.3f} to {high:.3f})")
        if isinstance(fit.rule, Isoflop) and law == "isoflop":
            bias = fit.rule.bias(fit.columns, fit.observed)
            cells.append("" if bias is None else f"{bias[0]:+.3f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="do not write the page")
    arguments = parser.parse_args()
    found = tables(pathlib.Path(os.environ["SSLJAX_DATA"]) / "scaling")
    body = []
    for name, table in found.items():
        (loss, seconds), other = ours(table), vpnls(table)
        theirs = [f"{other[0] * 1e6:.3f}", f"{other[1]:.2f} s"] if other else ["not installed", ""]
        body.append([name, str(len(table["loss"])), f"{loss * 1e6:.3f}", f"{seconds:.2f} s", *theirs])
    head = ["table", "rows", "Huber loss (mean, 1e-6)", "time", "vpnls", "time"]
    start = time.perf_counter()
    fit = scaling.fit("chinchilla", found["chinchilla, 240 points"], bootstrap=4000)
    seconds = time.perf_counter() - start
    rows = [
        [f"`{n}`", f"{v:.5g}", f"{fit.standard_errors[n]:.3g}", "{:.4g} to {:.4g}".format(*fit.intervals["cases"][n])]
        for n, v in {**fit.parameters, **fit.derived}.items()
    ]
    parameters = markdown(["240 points, log loss", "estimate", "standard error", "90% interval"], rows)
    said = (
        f"The fit with 4,000 bootstrap refits, forecasts and influences took {seconds:.1f} s on {os.cpu_count()} cores."
    )
    heads = ["exponent a of N_opt ~ C^a", "1: envelope", "2: parabolas", "bias of 2 without noise", "3: parametric"]
    compared = markdown(heads, [[name, *approaches(table)] for name, table in found.items()])
    text = f"{markdown(head, body)}\n\n{parameters}\n\n{said}\n\n{compared}"
    print(text)
    if not arguments.print:
        fill(PAGE, "benchmarks/laws.py", text)


if __name__ == "__main__":
    main()
