"""A run that continues another one: cool-downs of one trunk equal runs from scratch, bit for bit."""

import pytest
import test_run
from daily import on_day

from ssljax import run
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.scaling.branching import begin_from, saved_steps
from ssljax.scaling.cost import Costs
from ssljax.scaling.ledger import Claim
from ssljax.scaling.study import StudyConfig, make_study
from ssljax.scaling.trainer import train_claims

CONFIG = {
    **test_run.TINY,
    "model": {**test_run.TINY["model"], "depth": 1},
    "batch_size": 16,
    "schedule": {"name": "wsd", "warmup": 2, "decay": 4},
    "log": {**test_run.TINY["log"], "every_steps": 4},
    "checkpoint": {"every_steps": 100},
    "deterministic": True,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store in which a trunk was trained to step 6, and two runs of 10 and 13 steps that begin from its segments."""
    folder = tmp_path_factory.mktemp("store")
    group = schema.build(StudyConfig, {"generator": {"name": "cooldowns", "lengths": [10, 13]}}, "study")
    runs = make_study(CONFIG, group, "study", Costs()).runs
    for planned in runs:
        claim = Claim(planned.hash, planned.name, planned.config.to_dict(), planned.parent, planned.stop, "done")
        (outcome,) = train_claims(folder, [claim])
        assert (outcome.state, outcome.why) == ("done", ""), planned.name
    return folder, {planned.name: planned for planned in runs}


@on_day(0, 3)
def test_segments_stop_where_runs_begin(store):
    folder, runs = store
    assert list(runs) == ["trunk=6", "steps=10", "trunk=9", "steps=13"]
    assert [saved_steps(folder / "runs" / planned.hash)[-1] for planned in runs.values()] == [6, 10, 9, 13]
    first = test_run.metrics(folder / "runs" / runs["trunk=6"].hash)
    assert [line["step"] for line in first] == [4], "no line at its end, which a run from scratch has not"


@on_day(0, 3)
def test_a_cool_down_equals_the_run_from_scratch(store, tmp_path):
    folder, runs = store
    planned = runs["steps=13"]
    run.train(planned.config, tmp_path / "scratch")
    branch = folder / "runs" / planned.hash
    assert test_run.metrics(branch) == test_run.metrics(tmp_path / "scratch")
    test_run.same(test_run.parameters(branch), test_run.parameters(tmp_path / "scratch"))


@on_day(0, 3)
def test_a_run_with_a_checkpoint_keeps_it(store):
    folder, runs = store
    planned = runs["steps=10"]
    assert begin_from(folder / "missing", planned.config, folder / "runs" / planned.hash) == 10


@on_day(0, 3)
def test_a_missing_parent_is_one_line(store, tmp_path):
    folder, runs = store
    with pytest.raises(UserError, match=r"missing.* holds no config.json"):
        begin_from(folder / "missing", runs["steps=10"].config, tmp_path / "new")
