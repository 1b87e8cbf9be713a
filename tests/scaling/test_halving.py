"""Successive halving: rungs, values and ranks from the definition."""

import json

import pytest

from ssljax.base.durations import RunLengths
from ssljax.scaling.halving import Halving


def test_rungs_grow_by_the_factor():
    assert Halving(first=10, factor=3).rungs(RunLengths(8, total_steps=100)) == [10, 30, 90]
    assert Halving(first="25%", factor=2).rungs(RunLengths(8, total_steps=100)) == [25, 50]
    assert Halving(first="4 epochs", factor=2).rungs(RunLengths(8, 80, total_steps=100)) == [40, 80]
    assert Halving(first=100).rungs(RunLengths(8, total_steps=100)) == []


@pytest.mark.parametrize("keys", [{"mode": "best"}, {"metric": "accuracy"}, {"first": "soon"}])
def test_wrong_values_are_refused(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        Halving(**keys).validate()


def test_the_value_at_a_step_is_the_last_one_before(tmp_path):
    lines = [{"step": 5, "loss": 3.0}, {"step": 10, "loss": None}, {"step": 15, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [Halving().value(tmp_path, step) for step in (4, 5, 9, 10, 15, 99)] == [None, 3.0, 3.0, None, 1.0, 1.0]
    line = {"eval": "knn", "better": "higher", "headline": ["accuracy"]}
    found = [(10, "trained", 0.5), (10, "raw", 0.9), (20, "trained", 0.7)]
    text = "".join(json.dumps({**line, "step": s, "of": of, "metrics": {"accuracy": v}}) + "\n" for s, of, v in found)
    (tmp_path / "evals.jsonl").write_text(text)
    rule = Halving(metric="knn/accuracy", mode="max")
    assert [rule.value(tmp_path, step) for step in (9, 10, 30)] == [None, 0.5, 0.7]


def test_ranks_and_survivors():
    values = {"b": 1.0, "a": 1.0, "c": None, "d": 0.5}
    assert Halving().ranked(values) == ["d", "a", "b", "c"]
    assert Halving(mode="max").ranked(values) == ["a", "b", "d", "c"]
    assert [Halving(factor=3).kept(n) for n in (1, 2, 3, 8, 9)] == [1, 1, 1, 2, 3]
