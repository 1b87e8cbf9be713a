"""Numbers and sentences that say how far a fit can be trusted."""

import numpy as np

from ssljax.scaling.fitting import huber
from ssljax.scaling.laws.law import Columns, Law
from ssljax.scaling.table import Checked

LARGEST_TABLE = 2000  # rows for which each row is left out once
DECISIVE = 2.0  # standard errors of the other rows by which one row may move a parameter without a warning
FEW = 3  # rows for each parameter, below which a fit is called poor in data
ILL = 1e8  # condition number of the covariance from which on parameters are called not separately determined
NO_ESTIMATE = 0.05  # share of refits without an estimate that is reported


def goodness(law: Law, columns: Columns, observed: np.ndarray, estimate: np.ndarray) -> dict[str, float]:
    """Returns numbers that describe the residuals.

    rows; rmse: root mean square residual; noise: the same with the residual degrees of freedom; median: median absolute
    residual; r2: share of the variance on the scale of the residuals that is explained; loss: the sum of Huber's losses
    with `delta`, else of half the squares.
    """
    at, values = law.points(columns, observed)
    residuals = law.residuals(values, law.predict(estimate, at))
    target = np.log(values) if law.residual == "log" else values
    spread, free = ((target - target.mean()) ** 2).sum(), max(len(values) - len(law.parameters), 1)
    return {
        "rows": len(observed) / len(law.outputs),
        "rmse": float(np.sqrt((residuals**2).mean())),
        "noise": float(np.sqrt((residuals**2).sum() / free)),
        "median": float(np.median(np.abs(residuals))),
        "r2": float(1 - (residuals**2).sum() / spread) if spread > 0 else float("nan"),
        "loss": float(huber(residuals, law.delta).sum()),
    }


def influence(law: Law, columns: Columns, observed: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Returns the largest change [n] of a coordinate if a row is left out; NaN for large tables.

    A change is measured in the jackknife standard error of the other rows, the root of the sum of the squares of their
    changes, so that a row cannot hide behind the spread that it makes itself (as DFBETAS of Belsley, Kuh and Welsch
    1980, which leave the row out of the scale).
    """
    count = len(next(iter(columns.values())))
    if count > LARGEST_TABLE:
        return np.full(count, np.nan)
    left_out = law.estimate(columns, observed[None], 1.0 - np.eye(count), estimate)
    with np.errstate(all="ignore"):
        squares = (_coordinates(law, left_out) - _coordinates(law, estimate)) ** 2
    squares = np.where(np.isfinite(squares), squares, 0.0)
    others = squares.sum(0) - squares
    ratios = np.where(squares > 0, squares / np.maximum(others, 1e-300), 0.0)
    return np.sqrt(np.minimum(ratios.max(1), 1e12))


def condition(law: Law, samples: np.ndarray) -> float:
    """Returns the condition number of the covariance of refits [R, P], over the coordinates of the search.

    It is NaN if the refits do not differ or are too few.
    """
    coordinates = _coordinates(law, samples)
    coordinates = coordinates[np.isfinite(coordinates).all(1)]
    if len(coordinates) < 3:
        return float("nan")
    covariance = np.atleast_2d(np.cov(coordinates.T))
    number = float(np.linalg.cond(covariance)) if np.isfinite(covariance).all() else float("nan")
    return number if np.isfinite(number) else float("nan")


def _coordinates(law: Law, parameters: np.ndarray) -> np.ndarray:
    logs = np.array([p.log for p in law.parameters])
    with np.errstate(all="ignore"):
        return np.where(logs, np.log(np.where(logs, parameters, 1.0)), parameters)


def far(law: Law, columns: Columns, at: Columns, factor: float) -> list[str]:
    """Returns warnings if predictions are outside the range of the table by more than a factor."""
    out = []
    for name, values in at.items():
        known = columns.get(name)
        if known is None or not (known > 0).all():
            continue
        above, below = values.max() / known.max(), known.min() / values.min()
        beyond = max(above, below)
        if beyond > factor:
            side = "above" if above >= below else "below"
            out.append(f"{name}: extrapolated to a factor of {beyond:.3g} {side} the range of the table")
    return out


def doubts(
    law: Law,
    data: Checked,
    estimate: np.ndarray,
    samples: np.ndarray,
    changes: np.ndarray,
    condition_number: float,
    level: float,
) -> list[str]:
    """Returns warnings about a fit, one line each."""
    out, count = [], law.count(data.columns)
    if len(data.rows) * len(law.outputs) < FEW * count:
        out.append(f"{len(data.rows)} rows for {count} parameters: intervals are rough below {FEW} rows for each")
    for parameter, value in zip(law.parameters, estimate):
        at_lower = value <= parameter.lower and np.isfinite(parameter.lower) and not parameter.log
        if at_lower or value >= parameter.upper:
            out.append(f"{parameter.name} = {value:.4g} is at its bound: the rows do not determine it")
    if np.isfinite(changes).any() and np.nanmax(changes) > DECISIVE:
        row = int(np.nanargmax(changes))
        out.append(
            f"row {data.rows[row]} decides the fit: without it a parameter moves by {changes[row]:.2g} standard errors "
            "of the other rows"
        )
    if condition_number > ILL:
        out.append(f"the covariance has the condition number {condition_number:.2g}: parameters compensate each other")
    lost = float(1 - np.isfinite(samples).all(1).mean())
    if lost > NO_ESTIMATE:
        out.append(f"{lost:.0%} of the refits have no estimate; intervals are of the others")
    if law.note:
        out.append(law.note.format(level=f"{level:.0%}"))
    return [*out, *law.warnings(data.columns, data.observed, estimate)]
