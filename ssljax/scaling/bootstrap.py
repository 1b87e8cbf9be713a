"""Resampling of a table, and intervals from refits.

A refit of a resampled table is an estimate with other weights of the rows (cases, clusters) or with other observations
(residuals), so all refits are one call of `Law.estimate`.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, stdtrit

from ssljax.scaling.laws.law import Columns, Law

KINDS = ("cases", "clusters", "residuals")
MEANING = {
    "cases": "rows drawn with replacement",
    "clusters": "groups of rows drawn with replacement",
    "residuals": "residuals with random signs on the fitted values (wild bootstrap)",
}


def case_weights(count: int, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """Returns [repeats, count]: how often each row is drawn in a sample of `count` rows with replacement."""
    return rng.multinomial(count, np.full(count, 1 / count), size=repeats).astype(float)


def cluster_weights(groups: Sequence, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """Returns [repeats, n]: how often each row is drawn if whole groups are drawn with replacement.

    Args:
        groups: [n], the group of each row.
        repeats: number of samples.
        rng: generator.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return case_weights(len(names), repeats, rng)[:, index]


def refits(
    law: Law,
    columns: Columns,
    observed: np.ndarray,
    estimate: np.ndarray,
    kind: str,
    repeats: int,
    rng: np.random.Generator,
    groups: Sequence | None = None,
) -> np.ndarray:
    """Returns estimates [repeats, P] of resampled tables, NaN where a sample has no estimate.

    Args:
        law: the law.
        columns: {name: [n]}.
        observed: [T n].
        estimate: [P], of the table itself.
        kind: "cases", "clusters" or "residuals".
        repeats: number of samples.
        rng: generator.
        groups: [n], for "clusters".
    """
    count = len(next(iter(columns.values())))
    if kind == "residuals":
        tables = residual_tables(law, columns, observed, estimate, repeats, rng)
        return law.estimate(columns, tables, np.ones((repeats, count)), estimate)
    if kind == "clusters":
        assert groups is not None
        weights = cluster_weights(groups, repeats, rng)
    else:
        weights = case_weights(count, repeats, rng)
    return law.estimate(columns, observed[None], weights, estimate)


def residual_tables(
    law: Law, columns: Columns, observed: np.ndarray, estimate: np.ndarray, repeats: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns observations [repeats, T n] of a wild bootstrap (Liu 1988): fitted values and residuals of random signs.

    Residuals are divided by 1 - leverage (HC3 of MacKinnon and White 1985, the transformation w3 of MacKinnon 2013,
    which covers best in small samples). Random signs keep the size of the noise at each row, and the design; the
    median of the noise is kept at zero too, so that the method also holds for losses close to absolute values (Feng, He
    and Hu 2011).
    """
    fitted = law.fitted(columns, observed, estimate)
    residuals = law.residuals(observed, fitted) / (1 - law.leverage(columns, estimate))
    signs = rng.choice([-1.0, 1.0], size=(repeats, len(observed)))
    return fitted * np.exp(signs * residuals) if law.residual == "log" else fitted + signs * residuals


def tails(level: float, units: int, fitted: int) -> tuple[float, float]:
    """Returns the two quantiles of an expanded percentile interval (Hesterberg 2015, section 5.3).

    Percentiles of refits are too narrow for small samples: the spread of refits lacks the factor n / (n - p), and
    they are normal where t holds. The quantiles are moved outwards by both.

    Args:
        level: of the interval, such as 0.9.
        units: number of units that were drawn (rows or groups).
        fitted: parameters that these units determine.
    """
    free = max(units - fitted, 1)
    low = float(ndtr(np.sqrt(units / free) * stdtrit(free, (1 - level) / 2)))
    return low, 1 - low


def residual_tails(level: float, units: int, fitted: int) -> tuple[float, float]:
    """Returns the two quantiles for refits of residuals, whose spread is right already: t in place of the normal."""
    low = float(ndtr(stdtrit(max(units - fitted, 1), (1 - level) / 2)))
    return low, 1 - low


def interval(samples: np.ndarray, quantiles: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns lower and upper bounds [...] of samples [R, ...], without the samples that are NaN."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a quantity that is NaN in all samples stays NaN
        low, high = np.nanquantile(samples, quantiles, axis=0)
    return low, high
