"""Resampling against its definitions, and the coverage of intervals on simulated studies.

    pytest -m full tests/scaling/test_bootstrap.py   # 60 studies of every law, about ten minutes

`benchmarks/coverage.py` runs 200 studies of every law and writes the table of docs/laws.md.
"""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest
from scipy import stats

from ssljax.scaling import bootstrap
from ssljax.scaling.laws import REGISTRY, create

BENCHMARKS = pathlib.Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def coverage():
    """The module `benchmarks/coverage.py`."""
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("coverage_benchmark", BENCHMARKS / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(BENCHMARKS))
    return module


def test_case_weights_count_draws():
    weights = bootstrap.case_weights(7, 4000, np.random.default_rng(0))
    assert (weights.sum(1) == 7).all() and weights.min() >= 0
    # The share of samples without a given row is (1 - 1/7)^7 = 0.340, with a standard error of 0.0075.
    np.testing.assert_allclose((weights == 0).mean(0), (6 / 7) ** 7, atol=0.03)


def test_cluster_weights_are_equal_within_groups():
    weights = bootstrap.cluster_weights(list("aabbbcd"), 500, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 1]).all() and np.ptp(weights[:, 2:5], axis=1).max() == 0
    assert (weights[:, [0, 2, 5, 6]].sum(1) == 4).all()


def test_residual_tables_keep_the_size_of_residuals():
    law = create("power")
    example = law.example()
    table = law.simulate(example, np.random.default_rng(0))
    columns = {"tokens": table["tokens"]}
    truth = np.array([example.parameters[p.name] for p in law.parameters])
    drawn = bootstrap.residual_tables(law, columns, table["loss"], truth, 200, np.random.default_rng(1))
    fitted = law.predict(truth, columns)
    # Leverage of a line, from its textbook formula.
    x = np.log(table["tokens"])
    leverage = 1 / 20 + (x - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    expected = np.abs(np.log(table["loss"] / fitted)) / (1 - leverage)
    np.testing.assert_allclose(np.abs(np.log(drawn / fitted)), np.tile(expected, (200, 1)), rtol=1e-9)
    assert abs(np.sign(np.log(drawn / fitted)).mean()) < 0.05


def test_tails_are_wider_than_the_level_and_tend_to_it():
    low, high = bootstrap.tails(0.9, 20, 2)
    assert low == pytest.approx(stats.norm.cdf(np.sqrt(20 / 18) * stats.t.ppf(0.05, 18))) and high == 1 - low
    assert low < 0.05 and bootstrap.tails(0.9, 10**7, 2)[0] == pytest.approx(0.05, abs=1e-5)
    assert bootstrap.residual_tails(0.9, 10**7, 2)[0] == pytest.approx(0.05, abs=1e-5)
    assert low < bootstrap.residual_tails(0.9, 20, 2)[0] < 0.05


def test_intervals_leave_refits_without_an_estimate_out():
    samples = np.concatenate([np.arange(101.0), [np.nan] * 50])
    low, high = bootstrap.interval(samples, (0.05, 0.95))
    assert (low, high) == (5.0, 95.0)
    low, high = bootstrap.interval(np.full((5, 2), np.nan), (0.05, 0.95))
    assert np.isnan(low).all() and np.isnan(high).all()


def test_the_spread_of_refits_equals_the_standard_error_of_a_line():
    """Residual bootstrap of log_linear against the textbook formula; 4,000 refits give the spread to 1.1%."""
    law = create("log_linear")
    example = law.example()
    table = law.simulate(example, np.random.default_rng(4))
    columns, y = {"tokens": table["tokens"]}, table["accuracy"]
    estimate = law.estimate(columns, y[None], np.ones((1, 20)))[0]
    samples = bootstrap.refits(law, columns, y, estimate, "residuals", 4000, np.random.default_rng(0))
    x = np.log(columns["tokens"])
    residuals = y - law.predict(estimate, columns)
    leverage = 1 / 20 + (x - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    slopes = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    expected = np.sqrt((slopes**2 * residuals**2 / (1 - leverage) ** 2).sum())  # HC3
    assert samples[:, 1].std() == pytest.approx(expected, rel=0.05)


def test_the_interval_of_a_power_law_covers(coverage):
    """60 studies of 100 refits: at a true coverage of 90%, 46 to 60 of 60 hold the truth with probability 0.999."""
    found = coverage.shares("power", 60, 100)
    low = stats.binom.ppf(0.0005, 60, 0.9) / 60
    assert all(low <= share for share in found.values()), found
    # An interval that is always wide enough would be no 90% interval: not all three cover all studies.
    assert min(found.values()) < 1


def test_the_benchmark_has_every_law(coverage):
    assert {variant.split()[0] for variant in coverage.VARIANTS} == set(REGISTRY)


@pytest.mark.full
def test_intervals_of_all_laws_cover(coverage):
    """60 studies: at a true coverage of 85%, at least 40 of 60 hold the truth with probability 0.9998."""
    for variant in coverage.VARIANTS:
        law = coverage.law_of(variant)
        found = coverage.shares(variant, 60, 200)
        if not law.note:
            assert all(share >= 40 / 60 for share in found.values()), (variant, found)
