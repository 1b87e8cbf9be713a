"""Forecasts that can be checked: a law is fitted to the smaller runs and predicts the next larger ones."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ssljax.base.errors import UserError
from ssljax.scaling.bootstrap import interval, refits, residual_tails, tails
from ssljax.scaling.laws.law import Columns, Law

FOLDS = 5  # groups of a table whose runs have no common budgets
REPEATS = 200


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A line of the leave-future-out table.

    Attributes:
        upto: size of the largest fitted run.
        fitted: number of fitted runs.
        to: size of the largest predicted run.
        predicted: number of predicted values.
        error: root mean square of the errors, on the scale of the residuals (relative errors for logarithms).
        bias: mean of the errors, observed minus predicted.
        inside: share of the observations inside their intervals.
    """

    upto: float
    fitted: int
    to: float
    predicted: int
    error: float
    bias: float
    inside: float


def groups_of(law: Law, columns: Columns, budgets: np.ndarray | None) -> np.ndarray:
    """Returns the group [n] of each row, from small to large: equal budgets, or fifths of the sizes."""
    sizes = law.size(columns) if budgets is None else budgets
    different, group = np.unique(np.round(np.log(sizes), 3), return_inverse=True)
    if len(different) <= len(sizes) / 3:
        return group
    order = np.argsort(np.argsort(sizes, kind="stable"), kind="stable")
    return order * FOLDS // len(sizes)


def leave_future_out(
    law: Law, columns: Columns, observed: np.ndarray, groups: np.ndarray, level: float, seed: int
) -> tuple[tuple[Forecast, ...], tuple[str, ...]]:
    """Returns a line for each group after the first ones that suffice for a fit: fit on groups up to i, predict i + 1.

    Intervals are those of a new observation: refits by the law's bootstrap, with a residual added.

    Returns:
        (lines, warnings); a fit that fails on the smaller runs is named in a warning.
    """
    lines, failed = [], []
    sizes = law.size(columns)
    for last in range(int(groups.max())):
        past, future = groups <= last, groups == last + 1
        inputs = {name: values[past] for name, values in columns.items()}
        y = _rows(law, observed, past)
        if not future.any() or past.sum() <= law.count(inputs) + 1 or not _distinct(law, inputs):
            continue
        try:
            line = _line(law, inputs, y, columns, observed, future, level, seed)
        except (UserError, np.linalg.LinAlgError):
            line = None
        if line is None:
            failed.append(f"{sizes[past].max():.3g}")
        else:
            error, inside = line
            lines.append(
                Forecast(
                    float(sizes[past].max()),
                    int(past.sum()),
                    float(sizes[future].max()),
                    len(error),
                    float(np.sqrt((error**2).mean())),
                    float(error.mean()),
                    float(inside.mean()),
                )
            )
    warnings = [f"no forecast from the runs up to {', '.join(failed)}: no estimate from these"] if failed else []
    return tuple(lines), tuple(warnings)


def _rows(law: Law, observed: np.ndarray, which: np.ndarray) -> np.ndarray:
    return observed[np.tile(which, len(law.outputs))]


def _distinct(law: Law, columns: Columns) -> bool:
    return all(len(np.unique(columns[column.name])) >= column.distinct for column in law.inputs)


def _line(
    law: Law,
    inputs: Columns,
    observed: np.ndarray,
    columns: Columns,
    all_observed: np.ndarray,
    future: np.ndarray,
    level: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns errors and whether each observation is inside its interval; None if there is no estimate."""
    rng = np.random.default_rng(seed)
    count = len(next(iter(inputs.values())))
    estimate = law.estimate(inputs, observed[None], np.ones((1, count)))[0]
    held, truth = law.points({n: v[future] for n, v in columns.items()}, _rows(law, all_observed, future))
    if not np.isfinite(estimate).all() or not len(truth):
        return None
    kind = "residuals" if law.resample == "residuals" else "cases"
    samples = refits(law, inputs, observed, estimate, kind, REPEATS, rng)
    lower, upper = observation_interval(law, inputs, observed, estimate, samples, held, level, kind, rng)
    error = law.residuals(truth, law.predict(estimate, held))
    return error, (truth >= lower) & (truth <= upper)


def observation_interval(
    law: Law,
    columns: Columns,
    observed: np.ndarray,
    estimate: np.ndarray,
    samples: np.ndarray,
    at: Columns,
    level: float,
    kind: str,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the interval [m] of new observations at the rows of `at`: predictions of the refits, with a residual."""
    residuals = law.residuals(observed, law.fitted(columns, observed, estimate))
    units = law.resampled_units(columns)
    residuals = residuals * np.sqrt(units / max(units - law.count(columns), 1))
    predicted = law.predict(samples, at)
    noise = rng.choice(residuals, size=predicted.shape) if law.noisy else np.zeros(predicted.shape)
    with np.errstate(all="ignore"):
        drawn = predicted * np.exp(noise) if law.residual == "log" else predicted + noise
    return interval(drawn, quantiles(law, columns, level, kind))


def quantiles(
    law: Law, columns: Columns, level: float, kind: str, groups: Sequence | None = None
) -> tuple[float, float]:
    """Returns the quantiles of an interval from refits of a kind.

    Percentiles of least-squares refits are expanded. With `delta`, refits of drawn rows are taken as they are: for a
    loss close to absolute values their spread in small samples is wider than that of the estimate already
    (`benchmarks/coverage.py`: expanded, 96% of the 90% intervals of chinchilla hold the truth).
    """
    units, fitted = law.resampled_units(columns), law.count(columns)
    if kind == "clusters":
        return tails(level, len(np.unique(np.asarray(groups))), 1)
    if kind == "residuals":
        return residual_tails(level, units, fitted)
    return tails(level, units, fitted) if law.delta is None else ((1 - level) / 2, (1 + level) / 2)
