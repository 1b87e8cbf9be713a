"""Cases that are too many for every run of the tests: each day has a share of them, `pytest -m full` the others."""

import datetime
from collections.abc import Iterable
from typing import Any

import pytest

TODAY = datetime.date.today().toordinal()


# Modules of many like tests: each day has every fifth of them, `pytest -m full` the others.
EVERY = 5
MANY = (
    "evals/test_definitions.py",
    "interop/test_export.py",
    "interop/test_inputs.py",
    "interop/test_live.py",
    "interop/test_parity.py",
    "layers/test_attention.py",
    "losses/test_contrastive.py",
    "losses/test_losses_brute_force.py",
    "losses/test_precision_and_limits.py",
    "models/test_flops.py",
    "models/test_models.py",
    "models/test_presets.py",
    "scaling/test_generators.py",
    "scaling/test_laws.py",
    "train/test_leaves.py",
    "train/test_optimizers.py",
)


def leave_for_other_days(items: Iterable[pytest.Item]) -> None:
    """Marks four of five tests of the modules in `MANY` as `full`, other ones each day."""
    counts: dict[str, int] = {}
    for item in items:
        name = "/".join(item.path.parts[-2:])
        if name in MANY:
            counts[name] = counts.get(name, -1) + 1
            if counts[name] % EVERY != TODAY % EVERY:
                item.add_marker(pytest.mark.full)


def daily(cases: Iterable[Any], every: int) -> list[Any]:
    """Parameters for all cases. Case i belongs to the days whose number is i modulo `every`; on others it is `full`."""

    def marked(case: Any) -> Any:
        return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full)

    return [case if i % every == TODAY % every else marked(case) for i, case in enumerate(cases)]


def on_day(number: int, every: int) -> pytest.MarkDecorator:
    """Mark of a test that belongs to the days whose number is `number` modulo `every`; on others it is `full`."""
    return pytest.mark.skipif(False, reason="of today") if TODAY % every == number else pytest.mark.full
