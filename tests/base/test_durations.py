"""Durations in every unit are converted exactly; error messages name the key."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssljax.base import durations
from ssljax.base.durations import RunLengths
from ssljax.base.errors import UserError

SIZES = RunLengths(batch_size=256, dataset_size=50_000, tokens_per_example=1024, total_steps=20_000)


@pytest.mark.parametrize(
    "value, steps",
    [
        (0, 0),
        (1000, 1000),
        ("1000 steps", 1000),
        ("1 step", 1),
        ("1.5k steps", 1500),
        ("1.5ksteps", 1500),
        ("90 epochs", math.ceil(90 * 50_000 / 256)),
        ("1 epoch", 196),  # 195.3: rounded up, so that every example is seen
        ("0.5 epochs", 98),
        ("10M examples", math.ceil(10_000_000 / 256)),
        ("2B tokens", math.ceil(2_000_000_000 / 1024 / 256)),
        ("1T tokens", math.ceil(10**12 / 1024 / 256)),
        ("1e6 examples", math.ceil(1_000_000 / 256)),
        ("5%", 1000),
        ("0%", 0),
        ("100%", 20_000),
        (" 2.5 % ", 500),
    ],
)
def test_steps(value, steps):
    assert durations.steps(value, SIZES, "schedule.warmup") == steps


@pytest.mark.parametrize(
    "value", ["", "5", "1e3", "epochs", "-5 steps", "5 days", "5 m examples", "5k%", "1,000 steps", 1.5, True, None, -1]
)
def test_malformed(value):
    with pytest.raises(UserError, match=r"^schedule\.warmup: got .*, must be an integer \(steps\) or a text such as"):
        durations.steps(value, SIZES, "schedule.warmup")


@pytest.mark.parametrize("value", [2**31, "3B steps", "1e9 epochs", "9e99 tokens"])
def test_more_steps_than_the_state_can_count_are_refused(value):
    with pytest.raises(UserError, match=r"^steps: got .* steps, must be at most 2,147,483,647"):
        durations.steps(value, SIZES, "steps")


def test_shares_above_100_percent_are_refused():
    with pytest.raises(UserError, match=r"^schedule\.warmup: got '101%', must be at most 100%"):
        durations.steps("101%", SIZES, "schedule.warmup")


@pytest.mark.parametrize(
    "value, what",
    [
        ("5 epochs", "the size of the dataset"),
        ("5 tokens", "the number of tokens per example"),
        ("5%", "the total number of steps"),
    ],
)
def test_unknown_lengths_are_errors(value, what):
    with pytest.raises(UserError, match=rf"^steps: got '{value}', but {what} is unknown; give it in steps"):
        durations.steps(value, RunLengths(batch_size=8), "steps")


def test_steps_and_examples_need_the_batch_size_only():
    assert durations.steps("17 examples", RunLengths(batch_size=8), "steps") == 3
    assert durations.steps("3 steps", RunLengths(batch_size=8), "steps") == 3


@given(epochs=st.integers(0, 10**4), size=st.integers(1, 10**7), batch=st.integers(1, 10**5))
def test_epochs_are_covered_in_the_fewest_steps(epochs, size, batch):
    steps = durations.steps(f"{epochs} epochs", RunLengths(batch_size=batch, dataset_size=size), "steps")
    assert (steps - 1) * batch < epochs * size <= steps * batch


@given(tenths=st.integers(0, 1000), total=st.integers(1, 10**9))
def test_shares_are_exact(tenths, total):
    value = f"{tenths // 10}.{tenths % 10}%"
    steps = durations.steps(value, RunLengths(batch_size=1, total_steps=total), "steps")
    assert steps == math.ceil(Fraction(tenths * total, 1000))


def test_factors_are_exact():
    for n in (1001, 2007, 2011, 9007, 123_457):  # 2.007 * 1000 is above 2007 in floating point
        assert durations.steps(f"{n // 1000}.{n % 1000:03d}k steps", SIZES, "steps") == n


def test_only_shares_depend_on_the_total():
    assert [durations.depends_on_total(v) for v in (5, "5 steps", "5 epochs", "5%", "5 % ")] == [False] * 3 + [True] * 2
