"""Workers elsewhere: GPUs of each trainer, and jobs of submitit, whose local processes run with `-m full`.

pip install "submitit>=1.5" && pytest -m full tests/scaling/test_executors.py
"""

import pickle
import sys
import time

import pytest
import test_run

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.scaling.cost import Costs
from ssljax.scaling.driver import plan
from ssljax.scaling.executors import Job, chips_of_jobs, gpus_of_jobs, submit
from ssljax.scaling.study import StudyConfig, make_study


def test_gpus_are_dealt_out():
    assert [job["CUDA_VISIBLE_DEVICES"] for job in gpus_of_jobs(2, 2, "4,5,6,7")] == ["4,5", "6,7"]
    assert [job["CUDA_VISIBLE_DEVICES"] for job in gpus_of_jobs(2, 1, "")] == ["0", "1"]
    with pytest.raises(UserError, match="--gpus-per-run: 2 jobs need 4 GPUs, but 3 are visible"):
        gpus_of_jobs(2, 2, "0,1,2")


def test_chips_are_dealt_out_in_slices():
    first, second = chips_of_jobs(2, 4)
    assert (first["TPU_VISIBLE_CHIPS"], second["TPU_VISIBLE_CHIPS"]) == ("0,1,2,3", "4,5,6,7")
    assert first["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,2,1" and first["TPU_PROCESS_BOUNDS"] == "1,1,1"
    with pytest.raises(UserError, match="--chips-per-run: got 3, must be 1, 2, 4 or 8"):
        chips_of_jobs(1, 3)


def test_a_job_can_be_pickled():
    again = pickle.loads(pickle.dumps(Job("store", "a", 3)))
    assert vars(again) == {"store": "store", "study": "a", "stack": 3}


def test_without_submitit_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"needs submitit; pip install 'ssljax\[slurm\]'"):
        submit(tmp_path, "a", 1, {})


@pytest.mark.full
def test_jobs_train_a_study(tmp_path):
    pytest.importorskip("submitit")
    config = {**test_run.TINY, "steps": 3}
    study = make_study(config, schema.build(StudyConfig, {"seeds": 2}, "study"), "a")
    ledger, _ = plan(study, tmp_path, Costs())
    assert len(set(submit(tmp_path, "a", 2, {"timeout_min": 10}, cluster="local"))) == 2
    deadline = time.monotonic() + 600
    while ledger.is_open("a") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert [row.state for row in ledger.rows("a")] == ["done", "done"]
    with pytest.raises(UserError, match="--executor slurm: "):
        submit(tmp_path, "a", 1, {"no_such_parameter": 1}, cluster="local")
