"""The process that trains a claim: every end of a run is an outcome, in one line. On real processes with `-m full`.

pytest -m full tests/scaling/test_trainer.py
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import test_run
from daily import on_day

from ssljax import run
from ssljax.config import build
from ssljax.scaling.branching import saved_steps
from ssljax.scaling.ledger import Claim
from ssljax.scaling.study import run_hash
from ssljax.scaling.trainer import headlines, train_claims

CONFIG = {
    **test_run.TINY,
    "model": {**test_run.TINY["model"], "depth": 1},
    "batch_size": 16,
    "steps": 6,
    "log": {**test_run.TINY["log"], "every_steps": 2},
    "evals": {"knn": {}},
}


def claim(until=None, then="done", **changes):
    config = build({**CONFIG, **changes})
    return Claim(run_hash(config), "one", config.to_dict(), None, until, then)


@on_day(0, 2)
def test_a_run_pauses_is_found_paused_and_ends(tmp_path):
    part, whole = claim(4, "paused"), claim()
    workdir = tmp_path / "runs" / part.hash
    (outcome,) = train_claims(tmp_path, [part])
    assert (outcome.state, outcome.step, saved_steps(workdir)[-1]) == ("paused", 4, 4)
    before = (workdir / "metrics.jsonl").read_bytes()
    (again,) = train_claims(tmp_path, [part])  # the worker died before it recorded the pause
    assert again.state == "paused" and (workdir / "metrics.jsonl").read_bytes() == before
    (outcome,) = train_claims(tmp_path, [whole])
    assert (outcome.state, outcome.step) == ("done", 6) and 0 < outcome.metrics["knn/accuracy"] <= 1
    assert outcome.version.startswith("0.1.0") and outcome.seconds > 0
    run.train(build(CONFIG), tmp_path / "whole")
    assert test_run.metrics(workdir) == test_run.metrics(tmp_path / "whole")
    test_run.same(test_run.parameters(workdir), test_run.parameters(tmp_path / "whole"))


def test_a_run_whose_steps_are_not_finite_has_diverged(tmp_path):
    optimizer = {"name": "sgd", "learning_rate": 1e38}
    (outcome,) = train_claims(tmp_path, [claim(optimizer=optimizer, log={**CONFIG["log"], "skipped_in_a_row": 2})])
    assert outcome.state == "diverged" and "steps in a row were not finite" in outcome.why


def test_mistakes_are_outcomes(tmp_path):
    (outcome,) = train_claims(tmp_path, [claim(data={"source": "npz:/nowhere.npz"})])
    assert outcome.state == "failed" and "nowhere.npz" in outcome.why and "\n" not in outcome.why
    one = claim()
    (outcome,) = train_claims(tmp_path, [dataclasses.replace(one, config={**one.config, "stepz": 1})])
    assert outcome.state == "failed" and "stepz: unknown key" in outcome.why


@on_day(1, 2)
def test_several_claims_are_trained_together(tmp_path, monkeypatch):
    """A rate that diverges, and a mistake in one config, end their own run; the others equal a run alone."""
    sgd = {"name": "sgd", "momentum": 0.0, "clip_norm": None}
    options = {"log": {**CONFIG["log"], "skipped_in_a_row": 2}}
    claims = [claim(optimizer={**sgd, "learning_rate": rate}, **options) for rate in (0.1, 1e38, 0.2)]
    outcomes = train_claims(tmp_path, claims)
    assert [outcome.state for outcome in outcomes] == ["done", "diverged", "done"]
    assert "steps in a row were not finite" in outcomes[1].why
    run.train(build(claims[2].config), tmp_path / "alone")
    alone = test_run.metrics(tmp_path / "alone")[-1]["loss"]
    assert outcomes[2].step == 6 and outcomes[2].loss == pytest.approx(alone, rel=1e-5)
    assert 0 < outcomes[2].metrics["knn/accuracy"] <= 1
    broken = dataclasses.replace(claims[0], config={**claims[0].config, "stepz": 1})
    assert [outcome.state for outcome in train_claims(tmp_path, [broken, claims[0]])] == ["failed", "done"]


def test_headlines_are_those_of_the_trained_model():
    line = {"eval": "knn", "headline": ["accuracy"], "metrics": {"accuracy": 0.5, "top5": 0.9}}
    lines = [{**line, "of": "trained", "step": 2}, {**line, "of": "raw", "step": 4}]
    assert headlines(lines) == {"knn/accuracy": 0.5}
    lines.append({**line, "of": "trained", "step": 4, "metrics": {"accuracy": None}})
    assert headlines(lines) == {"knn/accuracy": 0.5}


@pytest.mark.full
@pytest.mark.parametrize("end", ["worker dies", "SIGTERM"])
def test_a_trainer_saves_and_ends_with_its_worker(end, tmp_path):
    one = claim(steps=100_000, checkpoint={"every_steps": None}, log={**CONFIG["log"], "every_steps": 50})
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "ssljax.scaling.trainer"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[writing])
    os.close(writing)
    order = {"store": str(tmp_path), "claims": [dataclasses.asdict(one)], "result": writing}
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()
    path = tmp_path / "runs" / one.hash / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert path.exists() and process.poll() is None
    if end == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:
        process.stdin.close()
    assert process.wait(120) == 0
    with os.fdopen(reading) as result:
        (outcome,) = json.load(result)
    assert outcome["state"] == "planned" and saved_steps(path.parent)[-1] >= outcome["step"] > 0
