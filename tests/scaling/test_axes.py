"""Axes: products, keys that change together, draws that are a function of (seed, key, number), and their mistakes."""

import math
import statistics

import pytest

from ssljax.base.errors import UserError
from ssljax.scaling.axes import Axes, in_order, parse_distribution, parse_values


def test_values_are_literals_separated_by_commas_outside_brackets():
    assert parse_values("objective.temperature=0.1,0.2, .5", "--grid") == ("objective.temperature", (0.1, 0.2, 0.5))
    assert parse_values("a=(1,2),[3,4],'x,y',none,true,adamw", "--grid") == (
        "a",
        ((1, 2), [3, 4], "x,y", None, True, "adamw"),
    )
    assert parse_values("--config.steps=1M tokens,2M tokens", "--grid") == ("steps", ("1M tokens", "2M tokens"))


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=1,,2"])
def test_other_forms_are_refused(text):
    with pytest.raises(UserError, match=r"--grid: .*must be KEY=VALUE,VALUE"):
        parse_values(text, "--grid")


def test_the_product_of_grid_rows_and_seeds():
    axes = Axes(grid=(("a", (1, 2)), ("b", (3, 4))), together=(("c", (5, 6)), ("d", (7, 8))), seeds=2)
    axes.check()
    wanted = [
        {"a": a, "b": b, "c": c, "d": c + 2, "seed": seed}
        for a in (1, 2)
        for b in (3, 4)
        for c in (5, 6)
        for seed in (10, 11)
    ]
    assert list(axes.changes(10)) == wanted
    assert list(Axes().changes(0)) == [{}]


def test_draws_depend_on_seed_key_and_number_alone():
    low, other = parse_distribution("loguniform(1e-4,1e-2)", "x"), parse_distribution("choice(adamw,lion)", "x")
    few = list(Axes(random=(("lr", low),), draws=3).changes(0))
    more = list(Axes(random=(("lr", low), ("name", other)), draws=5).changes(0))
    assert [row["lr"] for row in few] == [row["lr"] for row in more[:3]]
    assert [row["lr"] for row in few] != [
        row["lr"] for row in Axes(random=(("lr", low),), draws=3, draw_seed=1).changes(0)
    ]
    assert len({row["lr"] for row in more}) == 5


def test_distributions_have_their_bounds_and_means():
    values = [parse_distribution("loguniform(1e-4,1e-2)", "x").draw("k", i, 0) for i in range(2000)]
    assert min(values) >= 1e-4 and max(values) <= 1e-2
    assert statistics.fmean(map(math.log10, values)) == pytest.approx(-3, abs=0.05)  # standard error 0.013
    assert all(float(f"{v:.4g}") == v for v in values), "four digits"
    found = {parse_distribution("integers(2,4)", "x").draw("k", i, 0) for i in range(100)}
    assert found == {2, 3, 4}
    assert {parse_distribution("choice(a,b)", "x").draw("k", i, 0) for i in range(100)} == {"a", "b"}
    values = [parse_distribution("uniform(-1,3)", "x").draw("k", i, 0) for i in range(2000)]
    assert statistics.fmean(values) == pytest.approx(1, abs=0.1)  # standard error 0.026


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("logunifrom(1,2)", "did you mean 'loguniform'"),
        ("0.1", "must be one of"),
        ("uniform(1)", "must have two numbers"),
        ("integers(0.5,2)", "must have two integers"),
        ("loguniform(0,1)", "0 < lowest < highest"),
        ("uniform(2,1)", "lowest < highest"),
        ("choice()", "no values"),
    ],
)
def test_wrong_distributions_are_refused(text, said):
    with pytest.raises(UserError, match=said):
        parse_distribution(text, "--random")


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (Axes(grid=(("a", (1,)), ("a", (2,)))), "a: is an axis twice"),
        (Axes(grid=(("a", ()),)), "a: the axis has no values"),
        (Axes(together=(("a", (1, 2)), ("b", (1,)))), r"equally many values \(a has 2, b has 1\)"),
        (Axes(random=(("a", parse_distribution("uniform(0,1)", "")),)), "--runs: missing"),
        (Axes(draws=2), "no key is drawn"),
        (Axes(grid=(("seed", (1, 2)),), seeds=2), "`seed` is an axis too"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes, said):
    with pytest.raises(UserError, match=said):
        axes.check()


def test_names_and_sources_are_changed_first():
    order = in_order({"optimizer.learning_rate": 1, "data.source": 2, "optimizer.name": 3})
    assert [key for key, _ in order] == ["optimizer.name", "data.source", "optimizer.learning_rate"]
