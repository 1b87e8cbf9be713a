"""Schedules against closed forms, phases in every unit, and refused settings."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssljax.base import schema
from ssljax.base.durations import RunLengths
from ssljax.base.errors import UserError
from ssljax.train import schedules
from ssljax.train.schedules import REGISTRY, WSD, Constant, Cosine, Linear, Rsqrt

TOTAL, WARMUP = 50, 10
SIZES = RunLengths(batch_size=8, dataset_size=80, tokens_per_example=16, total_steps=TOTAL)


def curve(schedule, total=TOTAL, lengths=SIZES):
    """The multipliers of all steps, from one compiled function of a traced step."""
    resolved = schedule.resolve(dataclasses.replace(lengths, total_steps=total))
    return np.asarray(jax.jit(jax.vmap(lambda s: resolved.shape(s, total)))(jnp.arange(total)))


def closed_form(after):
    return [(s + 1) / WARMUP if s < WARMUP else after(s - WARMUP, TOTAL - WARMUP) for s in range(TOTAL)]


CASES = {
    "constant": (Constant(warmup=WARMUP), lambda n, left: 1.0),
    "cosine": (Cosine(warmup=WARMUP), lambda n, left: (1 + math.cos(math.pi * n / left)) / 2),
    "cosine-final": (
        Cosine(warmup=WARMUP, final=0.1),
        lambda n, left: 0.1 + 0.9 * (1 + math.cos(math.pi * n / left)) / 2,
    ),
    "linear": (Linear(warmup=WARMUP), lambda n, left: 1 - n / left),
    "linear-final": (Linear(warmup=WARMUP, final=0.25), lambda n, left: 1 - 0.75 * n / left),
    "rsqrt": (Rsqrt(warmup=WARMUP, timescale=5), lambda n, left: math.sqrt(5 / (5 + n))),
    "wsd": (WSD(warmup=WARMUP, decay=20), lambda n, left: 1 - math.sqrt(max(0, n - left + 20) / 20)),
    "wsd-linear": (
        WSD(warmup=WARMUP, decay="40%", form="linear", final=0.1),
        lambda n, left: 1 - 0.9 * max(0, n - left + 20) / 20,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_closed_form(name):
    schedule, after = CASES[name]
    np.testing.assert_allclose(curve(schedule), closed_form(after), rtol=1e-5, atol=1e-6)


def test_every_registered_schedule_has_a_closed_form():
    assert {name.split("-")[0] for name in CASES} == set(REGISTRY)


def test_rsqrt_with_timescale_equal_to_warmup_is_the_schedule_of_vaswani():
    found = curve(Rsqrt(warmup=WARMUP, timescale=WARMUP))
    np.testing.assert_allclose(found[WARMUP:], np.sqrt(WARMUP / np.arange(WARMUP, TOTAL)), rtol=1e-6)


@given(
    name=st.sampled_from(sorted(REGISTRY)),
    warmup=st.integers(0, 30),
    total=st.integers(40, 60),
)
def test_rises_to_one_and_never_leaves_the_unit_interval(name, warmup, total):
    extra = {"decay": 10} if name == "wsd" else {"timescale": 7} if name == "rsqrt" else {}
    schedule = REGISTRY.get(name)(warmup=warmup, **extra).resolve(RunLengths(batch_size=1, total_steps=total))
    found = np.asarray(schedule.shape(jnp.arange(total), total))
    assert np.all((found > 0) & (found <= 1)), found
    assert found[max(warmup - 1, 0)] == found[warmup] == 1
    assert np.all(np.diff(found[:warmup]) > 0) and np.all(np.diff(found[warmup:]) <= 0)
    # Beyond the end (of a prolonged run) the rate stays constant.
    assert 0 <= schedule.shape(total + 5, total) <= found[-1]


def test_large_steps_keep_their_precision():
    total = 10_000_000
    schedule = Linear().resolve(RunLengths(batch_size=1, total_steps=total))
    assert schedule.shape(jnp.int32(total - 1), total) == pytest.approx(1e-7, rel=0.2)


@pytest.mark.parametrize("warmup", [5, "1 epoch", "40 examples", "640 tokens", "10%", "0.005k steps"])
def test_warmup_in_any_unit(warmup):
    resolved = Cosine(warmup=warmup).resolve(SIZES)
    assert resolved.warmup == (10 if warmup == "1 epoch" else 5)


def test_schedules_that_depend_on_the_total():
    dependent = {name: REGISTRY.get(name)().total_dependent for name in REGISTRY}
    assert dependent == {"constant": False, "cosine": True, "linear": True, "rsqrt": False, "wsd": True}
    assert Constant(warmup="5%").total_dependent and Rsqrt(timescale="5%").total_dependent
    for schedule in (Constant(warmup=5), Rsqrt(warmup=5, timescale=7)):
        np.testing.assert_array_equal(curve(schedule, total=40), curve(schedule, total=60)[:40])
    assert np.any(curve(WSD(), total=40) != curve(WSD(), total=60)[:40])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"name": "cosin"}, r"schedule\.name: unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"name": "cosine", "final": 1.5}, r"schedule\.final: got 1.5, must be <= 1"),
        ({"name": "cosine", "warmup": -1}, r"schedule\.warmup: got -1, must be an integer"),
        ({"name": "cosine", "warmup": "5 epoks"}, r"schedule\.warmup: got '5 epoks', must be an integer"),
        ({"name": "wsd", "decay": "soon"}, r"schedule\.decay: got 'soon'"),
        ({"name": "wsd", "form": "sqrt"}, r"schedule\.form: got 'sqrt'; did you mean '1-sqrt'"),
        ({"name": "rsqrt", "timescale": 0}, r"schedule\.timescale: got 0, must be > 0"),
        ({"name": "linear", "warm_up": 5}, r"schedule\.warm_up: unknown key; did you mean 'warmup'"),
    ],
)
def test_impossible_settings_name_their_key(values, message):
    with pytest.raises(UserError, match=message):
        schema.build_named(REGISTRY, values, "schedule")


def test_phases_must_fit_in_the_run():
    with pytest.raises(UserError, match=r"schedule\.warmup: warmup 30 \+ decay 30 steps, must fit in the run's 50"):
        WSD(warmup=30, decay=30).resolve(SIZES)
    assert Cosine(warmup=50).resolve(SIZES).warmup == 50
    assert Constant(warmup=60).resolve(SIZES).warmup == 60  # a short trial of a long recipe
    with pytest.raises(UserError, match=r"schedule\.warmup: got '1 epoch', but the size of the dataset is unknown"):
        Cosine(warmup="1 epoch").resolve(RunLengths(batch_size=8, total_steps=50))


def test_settings_survive_the_config():
    for name in REGISTRY:
        built = schema.build_named(REGISTRY, {"name": name, "warmup": "5%"}, "schedule")
        assert schema.to_dict(built)["warmup"] == "5%"
        assert schema.build_named(REGISTRY, schema.to_dict(built), "schedule") == built
    assert isinstance(built, schedules.Schedule)
