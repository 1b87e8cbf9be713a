"""Cases that are too many for every run of the tests: each day has a share of them, `pytest -m full` the others."""

import datetime
from collections.abc import Iterable
from typing import Any

import pytest

TODAY = datetime.date.today().toordinal()


def daily(cases: Iterable[Any], every: int) -> list[Any]:
    """Parameters for all cases. Case i belongs to the days whose number is i modulo `every`; on others it is `full`."""

    def marked(case: Any) -> Any:
        return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full)

    return [case if i % every == TODAY % every else marked(case) for i, case in enumerate(cases)]


def on_day(number: int, every: int) -> pytest.MarkDecorator:
    """Mark of a test that belongs to the days whose number is `number` modulo `every`; on others it is `full`."""
    return pytest.mark.skipif(False, reason="of today") if TODAY % every == number else pytest.mark.full
