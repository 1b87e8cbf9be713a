"""Workers: what trainers of every kind of end leave in the ledger, on small programs in place of trainers.

Real trainers, killed at random, are those of `pytest -m full tests/scaling/test_kills.py`.
"""

import collections
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import tiny_runs

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.base.signals import Stopped
from ssljax.scaling import driver, process
from ssljax.scaling.cost import Cost, Costs
from ssljax.scaling.driver import Worker, plan
from ssljax.scaling.ledger import Ledger
from ssljax.scaling.study import StudyConfig, make_study

CONFIG = {**tiny_runs.LM, "data": {"source": "builtin:digits"}, "steps": 9}

# A trainer of one run: it appends a line of metrics every step until `until`, and ends as the seed of the run says.
FAKE = """
import fcntl, json, os, pathlib, signal, sys, threading, time
order = json.loads(sys.stdin.readline())
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
threading.Thread(target=lambda: (os.read(0, 9), stopped.set()), daemon=True).start()
(claim,) = order["claims"]
folder = pathlib.Path(order["store"]) / "runs" / claim["hash"]
config = {**claim["config"], "evals": {}}
(folder / "config.json").write_text(json.dumps(config))
(folder / "data.json").write_text("{}")
lock = open(folder / "lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)  # in place of the lease of a workdir
seed, path = claim["config"]["seed"], folder / "metrics.jsonl"
step = len(path.read_text().splitlines()) if path.exists() else 0
state = "done"
if claim["parent"] and not step:
    assert (folder.parent / claim["parent"] / "metrics.jsonl").exists()
while step < (claim["until"] or 9):
    if stopped.wait(float(os.environ.get("FAKE_SECONDS", 0))):
        state = "planned"
        break
    step += 1
    with path.open("a") as file:
        print(json.dumps({"step": step, "loss": 10 - seed / 10 - step, "pid": os.getpid()}), file=file)
    if seed == 101 and step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 102 and step == 5:
        sys.exit("a native library says: no")
if claim["until"] and step >= claim["until"]:
    state = claim["then"]
if seed == 103:
    state = "diverged"
outcome = {"state": state, "why": "", "step": step, "loss": 10 - seed / 10 - step, "seconds": 1.0,
           "metrics": {}, "version": os.environ.get("CUDA_VISIBLE_DEVICES")}
os.write(order["result"], json.dumps([outcome]).encode())
"""


def use_fake(folder, monkeypatch):
    """Puts a program in the place of trainers, and lets workers look often."""
    file = folder / "fake.py"
    file.write_text(FAKE)
    monkeypatch.setattr(process, "TRAINER", [sys.executable, str(file)])
    for name in ("_POLL", "_IDLE"):
        monkeypatch.setattr(driver, name, 0.02)
    return file


@pytest.fixture(autouse=True)
def fake(tmp_path, monkeypatch):
    return use_fake(tmp_path, monkeypatch)


def prepared(store, seeds=(0, 1, 2), name="a", **group):
    study = make_study(CONFIG, schema.build(StudyConfig, {"grid": [("seed", seeds)], **group}, "study"), name)
    ledger = Ledger(store, make=True)
    costs = {run.hash: Cost(2, 1, 9, 8, 10.0, 4, 100) for run in study.runs}
    ledger.add(study, costs, {run.hash: [3] if study.halving else [] for run in study.runs})
    return ledger


def states(ledger):
    return {row.name: row.state for row in ledger.rows("a")}


def test_every_end_is_recorded_and_the_study_goes_on(tmp_path):
    ledger = prepared(tmp_path / "store", (0, 101, 102, 103, 1))
    Worker(ledger, "a", jobs=2).work()
    ends = {"seed=101": "failed", "seed=102": "failed", "seed=103": "diverged"}
    assert states(ledger) == {"seed=0": "done", **ends, "seed=1": "done"}
    why = {row.name: row.why for row in ledger.rows("a")}
    assert why["seed=101"] == "killed by SIGKILL, as for want of memory"
    assert why["seed=102"] == "exit code 1: a native library says: no"
    assert {row.name: row.step for row in ledger.rows("a")} == {
        "seed=0": 9,
        **dict.fromkeys(ends, 5),
        "seed=103": 9,
        "seed=1": 9,
    }
    Worker(ledger, "a").work()
    assert states(ledger)["seed=101"] == "failed", "a second call trains nothing again"
    assert ledger.retry("a", "failed") == 2
    Worker(ledger, "a").work()
    assert set(states(ledger).values()) == {"done", "diverged"}, "the half-done runs were continued"


def test_a_corrected_free_key_reaches_runs_that_are_not_done(tmp_path):
    """The evaluation that failed a run is no part of its identity, so the corrected study has the same run."""
    ledger = prepared(tmp_path / "store", (0, 101))
    Worker(ledger, "a").work()
    assert states(ledger) == {"seed=0": "done", "seed=101": "failed"}
    group = {"grid": [("seed", (0, 101))]}
    corrected = make_study({**CONFIG, "evals": {"knn": {}}}, schema.build(StudyConfig, group, "study"), "a")
    costs = {run.hash: Cost(2, 1, 9, 8, 10.0, 4, 100) for run in corrected.runs}
    assert ledger.add(corrected, costs) == 0
    assert states(ledger) == {"seed=0": "done", "seed=101": "planned"}
    (claim,) = ledger.claim("a", "me", 9)
    assert "knn" in claim.config["evals"]
    assert ledger.add(corrected, costs) == 0 and states(ledger)["seed=101"] == "running"


def test_a_trainer_gets_runs_of_one_shape(tmp_path, monkeypatch):
    ledger = prepared(tmp_path / "store", (0, 1), zip=[("steps", (9, 10))])
    taken = []
    monkeypatch.setattr(Worker, "_start", lambda self, slot, claims: taken.append([claim.name for claim in claims]))
    worker = Worker(ledger, "a", jobs=3, stack=4)
    worker._fill()
    assert taken == [["seed=0,steps=9", "seed=1,steps=9"], ["seed=0,steps=10", "seed=1,steps=10"]]


def test_a_signal_reaches_the_trainers_and_the_same_call_continues(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    ledger = prepared(tmp_path / "store")
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Stopped, match="the same command continues") as stopped:
        Worker(ledger, "a", jobs=3).work()
    assert stopped.value.exit_code == 75
    assert set(states(ledger).values()) <= {"planned", "done"} and "planned" in states(ledger).values()
    Worker(ledger, "a", jobs=3).work()
    assert set(states(ledger).values()) == {"done"}
    for row in ledger.rows("a"):
        lines = (ledger.workdir(row.hash) / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 10))


WORKER = """
import sys
from ssljax.scaling import driver, process
from ssljax.scaling.ledger import Ledger
process.TRAINER, driver._IDLE, driver._POLL = [sys.executable, sys.argv[2]], 0.05, 0.02
driver.Worker(Ledger(sys.argv[1]), "a").work()
"""


def test_workers_that_are_killed_lose_nothing(tmp_path, fake, monkeypatch):
    """Three workers of one ledger, of which one after the other is killed with signal 9."""
    monkeypatch.setenv("FAKE_SECONDS", "0.02")
    ledger = prepared(tmp_path / "store", range(8))
    command = [sys.executable, "-c", WORKER, str(ledger.store), str(fake)]
    workers = [subprocess.Popen(command) for _ in range(3)]
    deadline = time.monotonic() + 120
    while "done" not in states(ledger).values() and time.monotonic() < deadline:
        time.sleep(0.01)
    for worker in workers[:2]:
        worker.kill()
        worker.wait()
    assert workers[2].wait(120) == 0
    assert set(states(ledger).values()) == {"done"}
    for row in ledger.rows("a"):
        lines = [json.loads(line) for line in (ledger.workdir(row.hash) / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 10)), "each step once"
        pids = [pid for pid, _ in itertools.groupby(line["pid"] for line in lines)]
        assert len(pids) == len(set(pids)), "one trainer after the other"


def test_halving_stops_the_worst(tmp_path):
    ledger = prepared(tmp_path / "store", range(9), halving={"first": 3, "factor": 3})
    Worker(ledger, "a", jobs=4).work()
    found = states(ledger)
    assert [name for name, state in found.items() if state == "done"] == ["seed=6", "seed=7", "seed=8"]
    assert collections.Counter(found.values()) == {"done": 3, "stopped": 6}
    assert "rank 4 of 9 at step 3" in {row.name: row.why for row in ledger.rows("a")}["seed=5"]


def test_trainers_see_devices_of_their_own(tmp_path):
    ledger = prepared(tmp_path / "store")
    Worker(ledger, "a", jobs=2, devices=[{"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]).work()
    assert {row.version for row in ledger.rows("a")} <= {"4,5", "6,7"}


def test_too_little_space_is_one_line(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(driver.shutil, "disk_usage", lambda path: usage(100, 90, 10))
    text = {"source": "builtin:python-docs", "seq_len": 16, "tokenizer": {"name": "bytes"}}
    study = make_study({**CONFIG, "data": text}, schema.build(StudyConfig, {"seeds": 2}, "study"), "a")
    with pytest.raises(UserError, match=r"the checkpoints of 2 runs need about .* GB, .* free"):
        plan(study, tmp_path / "store", Costs())
    ledger = prepared(tmp_path / "other")
    with pytest.raises(UserError, match=r"has 0 MB free, a checkpoint of 'seed=0' needs"):
        Worker(ledger, "a").work()
    assert set(states(ledger).values()) == {"planned"}, "the claim was given back"


def test_metrics_of_halving_must_be_measured_at_the_rungs(tmp_path):
    text = {"source": "builtin:python-docs", "seq_len": 16, "tokenizer": {"name": "bytes"}}
    group = schema.build(StudyConfig, {"seeds": 2, "halving": {"metric": "loss/loss"}}, "study")
    study = make_study({**CONFIG, "data": text}, group, "a")
    with pytest.raises(UserError, match="must be 'loss' or a metric of an evaluation with every_steps"):
        plan(study, tmp_path / "store", Costs())
    assert not pathlib.Path(tmp_path / "store").exists()


def test_mistakes_in_evaluations_are_reported_before_any_run(tmp_path):
    config = {**tiny_runs.LM, "data": {"source": "builtin:python-docs", "seq_len": 16, "tokenizer": {"name": "bytes"}}}
    config["evals"] = {"held": {"type": "loss", "source": f"text:{tmp_path}/missing.txt"}}
    study = make_study(config, schema.build(StudyConfig, {"seeds": 2}, "study"), "a")
    with pytest.raises(UserError, match=r"missing\.txt"):
        plan(study, tmp_path / "store", Costs())
    assert not (tmp_path / "store").exists()
