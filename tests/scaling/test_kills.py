"""Workers that are killed at random, with real trainers; `python benchmarks/sweep_kills.py` is the long form.

pytest -m full tests/scaling/test_kills.py
"""

import pytest
from test_docs import script


@pytest.mark.full
def test_nothing_is_lost_and_nothing_is_done_twice(tmp_path):
    kills, found = script("benchmarks/sweep_kills.py").soak(tmp_path, runs=6, seed=1)
    assert sum(kills.values()) >= 2, "else nothing was tested"
    assert {key: found[key] for key in ("done", "equal", "in order")} == {"done": 6, "equal": 6, "in order": 6}
