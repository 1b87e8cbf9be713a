"""Leave-future-out tables: only the past is fitted, and errors are those of the next group."""

import numpy as np
import pytest

from ssljax import scaling
from ssljax.scaling.forecast import groups_of, leave_future_out
from ssljax.scaling.laws import create


def runs(seed=0, noise=0.01):
    """Six budgets with four runs each of a power law."""
    rng = np.random.default_rng(seed)
    x = np.repeat(np.geomspace(1e6, 1e11, 6), 4)
    return {"tokens": x, "loss": 12 * x**-0.07 * np.exp(noise * rng.standard_normal(24))}


def test_each_line_is_a_fit_of_the_past_alone():
    table, law = runs(), create("power")
    columns, y = {"tokens": table["tokens"]}, table["loss"]
    groups = groups_of(law, columns, None)
    assert groups.tolist() == np.repeat(range(6), 4).tolist()
    lines, warnings = leave_future_out(law, columns, y, groups, 0.9, 0)
    assert warnings == () and [line.fitted for line in lines] == [
        8,
        12,
        16,
        20,
    ]  # one budget alone does not determine a power law
    for line in lines:
        slope, level = np.polyfit(np.log(columns["tokens"][: line.fitted]), np.log(y[: line.fitted]), 1)
        future = slice(line.fitted, line.fitted + 4)
        error = np.log(y[future]) - level - slope * np.log(columns["tokens"][future])
        assert line.error == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)
        assert line.bias == pytest.approx(error.mean(), rel=1e-6)
        assert line.upto == columns["tokens"][line.fitted - 1] and line.to == columns["tokens"][line.fitted]


def test_later_rows_do_not_change_earlier_lines():
    table, law = runs(), create("power")
    groups = np.repeat(range(6), 4)
    changed = np.where(groups == 5, table["loss"] * 3, table["loss"])
    one, other = (
        leave_future_out(law, {"tokens": table["tokens"]}, y, groups, 0.9, 0)[0] for y in (table["loss"], changed)
    )
    assert one[:-1] == other[:-1] and one[-1] != other[-1]
    assert other[-1].inside == 0 and other[-1].bias == pytest.approx(np.log(3), abs=0.1)


def test_a_fit_that_fails_on_the_past_is_a_warning(monkeypatch):
    table, law = runs(), create("power")
    estimate = type(law).estimate

    def failing(self, columns, observed, *others):
        return estimate(self, columns, observed, *others) * (np.nan if len(observed[0]) == 12 else 1)

    monkeypatch.setattr(type(law), "estimate", failing)
    columns, groups = {"tokens": table["tokens"]}, np.repeat(range(6), 4)
    lines, warnings = leave_future_out(law, columns, table["loss"], groups, 0.9, 0)
    assert [line.fitted for line in lines] == [8, 16, 20]
    assert warnings == ("no forecast from the runs up to 1e+08: no estimate from these",)


def test_sizes_without_common_budgets_are_cut_into_fifths():
    law = create("power")
    x = np.random.default_rng(0).uniform(1e6, 1e9, 25)
    groups = groups_of(law, {"tokens": x}, None)
    assert np.bincount(groups).tolist() == [5] * 5
    assert x[groups == 0].max() < x[groups == 1].min()


def test_budgets_that_differ_a_little_are_one_group():
    law = create("isoflop")
    table = law.simulate(law.example(), np.random.default_rng(0))
    columns = {name: table[name] for name in ("params", "budget")}
    columns["budget"] = columns["budget"] * np.random.default_rng(1).uniform(0.98, 1.02, 45)
    assert groups_of(law, columns, None).tolist() == np.repeat(range(5), 9).tolist()


def test_the_order_can_be_named():
    table = {**runs(), "date": np.tile([1, 2, 3, 4], 6)}
    fit = scaling.fit("power", table, order="date", bootstrap=20)
    assert [line.fitted for line in fit.forecasts] == [6, 12, 18]


def test_intervals_of_observations_hold_most_of_the_future():
    inside = [line.inside for seed in range(6) for line in scaling.fit("power", runs(seed), bootstrap=20).forecasts]
    # 24 lines of four values: the standard error of the share is 3%.
    assert 0.8 < np.mean(inside) < 0.99


def test_minima_of_parabolas_are_forecast():
    law = create("isoflop")
    table = law.simulate(law.example(), np.random.default_rng(0))
    fit = scaling.fit("isoflop", table, bootstrap=50)
    assert [line.predicted for line in fit.forecasts] == [1, 1, 1]  # one minimum of the next budget
    assert all(line.error < 0.5 for line in fit.forecasts)
