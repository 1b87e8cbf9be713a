"""Studies on the processes of a job: runs are trained by all of them, on small programs in place of trainers.

Real trainers run with `pytest -m full tests/scaling/test_team.py`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import test_run
from daily import on_day
from test_driver import prepared

from ssljax.base import schema
from ssljax.scaling.cost import Costs
from ssljax.scaling.driver import plan
from ssljax.scaling.ledger import Ledger, Outcome
from ssljax.scaling.study import StudyConfig, make_study
from ssljax.scaling.team import joint_outcome

# A trainer of one process of a job: what becomes of it depends on the seed of the run.
FAKE = """
import json, os, pathlib, signal, sys, threading, time
order = json.loads(sys.stdin.readline())
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
(claim,), job = order["claims"], order["job"]
folder, seed, me = pathlib.Path(order["store"]) / "runs" / claim["hash"], claim["config"]["seed"], job["process_id"]
(folder / f"job-{me}.json").write_text(json.dumps({**job, "devices": os.environ.get("JAX_LOCAL_DEVICE_IDS")}))
state, why = "done", ""
if seed == 1 and me == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 1:
    state, why = "failed", "a process of this job has died or cannot be reached"
if seed == 4:  # process 0 is in a library, and ends by the signal that its worker got from process 1
    stopped.wait(60)
    state, why = ("planned", "") if me else ("failed", "process 1 of 2 did not come to localhost:1 within 300 s")
if seed == 2:  # one process is signalled, and both stop at the same step
    if me == 1 and stopped.wait(60):
        (folder / "stop").touch()
    while not (folder / "stop").exists():
        time.sleep(0.05)
    state = "planned"
outcome = {"state": state, "why": why, "step": me, "loss": 1.0, "seconds": 1.0, "metrics": {}, "version": None}
os.write(order["result"], json.dumps([outcome]).encode())
"""
WORKER = """
import sys
from ssljax import cli
from ssljax.scaling import driver, process, team
process.TRAINER, team._LOOK, driver._IDLE = [sys.executable, sys.argv[1]], 0.05, 0.05
sys.exit(cli.main(sys.argv[2:]))
"""


def start(folder, store, *more):
    """Starts the processes of a job that continues the studies of a store."""
    (folder / "fake.py").write_text(FAKE)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_LOCAL_DEVICE_IDS": "0"}
    started = []
    for i in range(2):
        place = [f"--coordinator=localhost:{port}", f"--process-id={i}", "--num-processes=2", *more]
        command = [sys.executable, "-c", WORKER, str(folder / "fake.py"), "sweep", "--workdir", str(store), *place]
        with (folder / f"process-{i}.log").open("w") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    return started


def end(folder, processes, seconds=120):
    """Returns the exit codes; the test fails with the logs if a process does not end."""
    try:
        return [process.wait(seconds) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail("\n".join(path.read_text() for path in sorted(folder.glob("process-*.log"))))
    finally:
        for process in processes:
            process.kill()


@on_day(0, 3)
def test_all_processes_train_each_run(tmp_path):
    ledger = prepared(tmp_path / "store", (0, 1, 3))
    assert end(tmp_path, start(tmp_path, tmp_path / "store")) == [2, 0], "a run has failed, says the leading process"
    rows = {row.name: row for row in ledger.rows("a")}
    assert [row.state for row in rows.values()] == ["done", "failed", "done"]
    assert rows["seed=1"].why == "process 1: killed by SIGKILL, as for want of memory"
    jobs = [json.loads((ledger.workdir(rows["seed=3"].hash) / f"job-{i}.json").read_text()) for i in (0, 1)]
    assert [job["process_id"] for job in jobs] == [0, 1] and {job["num_processes"] for job in jobs} == {2}
    assert jobs[0]["coordinator"] == jobs[1]["coordinator"] and rows["seed=3"].step == 0


def signalled(folder, seeds):
    """Sends SIGTERM to process 1 during the first run; returns the exit codes and the states of the runs."""
    ledger = prepared(folder / "store", seeds)
    processes = start(folder, folder / "store")
    waiting = ledger.workdir(ledger.rows("a")[0].hash) / "job-1.json"
    for _ in range(600):
        if waiting.exists():
            break
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    return end(folder, processes), [row.state for row in Ledger(folder / "store").rows("a")]


@on_day(1, 3)
def test_a_signal_to_one_process_ends_all(tmp_path):
    assert signalled(tmp_path, (2, 3)) == ([75, 75], ["planned", "planned"])


@on_day(2, 3)
def test_several_runs_at_a_time_are_refused(tmp_path):
    prepared(tmp_path / "store")
    assert end(tmp_path, start(tmp_path, tmp_path / "store", "--jobs=2")) == [2, 2]
    said = (tmp_path / "process-0.log").read_text()
    assert "error: --jobs: the processes of a job train one run at a time" in said
    assert "error" not in (tmp_path / "process-1.log").read_text()


@on_day(0, 3)
def test_an_error_of_process_0_ends_all_with_its_exit_code(tmp_path):
    (tmp_path / "empty").mkdir()
    assert end(tmp_path, start(tmp_path, tmp_path / "empty")) == [2, 2]
    said = [(tmp_path / f"process-{i}.log").read_text() for i in (0, 1)]
    assert "has no ledger.sqlite" in said[0] and "error" not in said[1]


@on_day(1, 3)
def test_a_signal_while_a_trainer_waits_for_the_others_loses_nothing(tmp_path):
    """The trainer of process 1 has ended by a signal; that of process 0 waits for it until it is ended too."""
    assert signalled(tmp_path, (4, 3)) == ([75, 75], ["planned", "planned"])


def outcome(state, why=""):
    return Outcome(state, why, 3, 1.0, 1.0, {}, None)


def test_the_reason_is_that_of_the_process_which_failed_first():
    lost = outcome("failed", "stopped, since process 2 has left: RESOURCE_EXHAUSTED")
    dead, full = outcome("failed", "killed by SIGABRT"), outcome("failed", "RESOURCE_EXHAUSTED")
    assert joint_outcome([outcome("done"), outcome("done")]).state == "done"
    assert joint_outcome([lost, dead, full]).why == "process 2: RESOURCE_EXHAUSTED"
    assert joint_outcome([full, lost]).why == "RESOURCE_EXHAUSTED"
    assert joint_outcome([lost, dead]).why == lost.why
    late = outcome("failed", "process 1 of 2 did not come to localhost:1234 within 300 s")
    assert joint_outcome([late, outcome("planned")]).state == "planned", "a signal came to process 1"
    assert joint_outcome([late, outcome("failed", "exit code 1: No module")]).why == "process 1: exit code 1: No module"
    assert joint_outcome([outcome("diverged", "loss"), outcome("diverged", "loss")]).state == "diverged"


@pytest.mark.full
def test_a_run_of_a_team_equals_the_run_of_a_job(tmp_path):
    """Two runs, the second one in two segments of a trunk, on two processes; equal to one process with two devices."""
    config = {**test_run.TINY, "mesh": {"data": 2}, "deterministic": True, "batch_size": 16}
    config |= {"schedule": {"name": "wsd", "warmup": 2, "decay": 4}, "checkpoint": {"every_steps": 100}}
    group = schema.build(StudyConfig, {"generator": {"name": "cooldowns", "lengths": [10]}}, "study")
    found = []
    for processes, devices in ((2, 1), (1, 2)):
        store = tmp_path / f"store-{processes}"
        ledger, _ = plan(make_study(config, group, "a", Costs()), store, Costs())
        command = [sys.executable, "-m", "ssljax.launcher", "-n", str(processes), "--devices-per-process", str(devices)]
        subprocess.run([*command, "sweep", "--workdir", str(store)], check=True)
        assert [row.state for row in ledger.rows("a")] == ["done", "done"]
        found.append([test_run.metrics(ledger.workdir(row.hash)) for row in ledger.rows("a")])
    for one, other in zip(*found):
        assert [line["step"] for line in one] == [line["step"] for line in other]
        for a, b in zip(one, other):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
