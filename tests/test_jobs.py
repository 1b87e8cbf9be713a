"""Jobs of several processes: equal to one process, and whole after faults."""

import json
import signal
import time

import jobs
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import at_most, on_day
from test_run import TINY, damage, metrics, parameters

from ssljax import objectives, run

SLOW = {
    **TINY,
    "mesh": {"data": -1},
    "steps": 40,
    "log": {**TINY["log"], "every_steps": 1},
    "checkpoint": {"every_steps": 4},
}


def config_of(name, folder):
    # Adam would turn the round-off of a gradient that is zero into a whole step.
    own = {"optimizer": {"name": "sgd", "learning_rate": 0.01}, "data": tiny.data(name, folder), "steps": 3}
    config = {**TINY, **tiny.config(name, bytes=True), **own}
    probe = {"knn": {"k": 5}} if config["data"]["source"] == "builtin:digits" else {}
    return {**config, "evals": {"loss": {"test_split": "train", "batch_size": 32, "max_examples": 100}, **probe}}


def close(found, expected, relative):
    """Compares lines of numbers; other values must be equal."""
    assert len(found) == len(expected)
    for line, other in zip(found, expected):
        assert line.keys() == other.keys()
        for key, value in line.items():
            if isinstance(value, float):
                np.testing.assert_allclose(value, other[key], rtol=relative, atol=1e-6, err_msg=key)
            elif isinstance(value, dict):
                close([value], [other[key]], relative)
            else:
                assert value == other[key], key


def evaluations(workdir):
    return [json.loads(line) for line in (workdir / "evals.jsonl").read_text().splitlines()]


# The batch is split over all devices, or its shares and the heads over devices of several processes.
MESHES = {2: {"data": 8}, 4: {"data": 2, "tensor": 4}}


@pytest.mark.parametrize(
    ("name", "processes"), at_most([(n, 2 + 2 * (i % 2)) for i, n in enumerate(objectives.REGISTRY)], 2)
)
def test_several_processes_equal_one(name, processes, tmp_path):
    """Losses, metrics, evaluations and checkpoints of a job with 8 devices."""
    config = {**config_of(name, tmp_path), "mesh": MESHES[processes]}
    job = jobs.start(tmp_path / "logs", [jobs.train(config, tmp_path / "job")], processes, 8 // processes)
    alone = run.train(config, tmp_path / "alone")
    assert job.wait() == [0] * processes, job.output()
    close(metrics(tmp_path / "job"), metrics(tmp_path / "alone"), 1e-4)
    close(evaluations(tmp_path / "job"), evaluations(tmp_path / "alone"), 1e-4)
    saved, expected = parameters(tmp_path / "job"), parameters(tmp_path / "alone")
    assert saved.keys() == expected.keys() and len(alone.evaluations)
    for path, value in expected.items():
        # A small sum of large gradients has their round-off.
        atol = 1e-6 + 1e-5 * np.abs(value).max(initial=0)
        np.testing.assert_allclose(saved[path], value, rtol=1e-4, atol=atol, err_msg=path)


# Faults, on other days. Each test runs a job of two processes with two devices each.


def start(tmp_path, name="run", config=SLOW, **options):
    return jobs.start(tmp_path / f"logs-{name}", [jobs.train(config, tmp_path / name)], 2, 2, **options)


def run_job(tmp_path, name="run", config=SLOW, **options):
    job = start(tmp_path, name, config, **options)
    assert job.wait() == [0, 0], job.output()
    return job.output()


def await_step(job, workdir, step, seconds=300):
    """Returns once a step is logged."""
    deadline, path = time.monotonic() + seconds, workdir / "metrics.jsonl"
    while time.monotonic() < deadline and all(p.poll() is None for p in job.processes):
        lines = path.read_text().splitlines() if path.exists() else []
        if any(json.loads(line)["step"] >= step for line in lines if line.endswith("}")):
            return
        time.sleep(0.01)
    raise AssertionError(job.output())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run_job(folder)
    return metrics(folder / "run")


@pytest.mark.parametrize("killed", [pytest.param(0, marks=on_day(5, 10)), pytest.param(1, marks=on_day(2, 10))])
def test_a_killed_process_ends_the_job_which_continues_bit_for_bit(killed, undisturbed, tmp_path):
    job = start(tmp_path)
    await_step(job, tmp_path / "run", 9)
    job.processes[killed].kill()
    began = time.monotonic()
    codes = job.wait(120)
    assert time.monotonic() - began < 60, "the survivor ends"
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] not in (0, 75), job.output()
    assert "resumed from the checkpoint of step" in run_job(tmp_path)
    assert metrics(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("told", [pytest.param(0, marks=on_day(6, 10)), pytest.param(1, marks=on_day(3, 10))])
def test_sigterm_of_one_process_stops_all_at_one_step(told, undisturbed, tmp_path):
    job = start(tmp_path)
    await_step(job, tmp_path / "run", 9)
    job.processes[told].terminate()
    assert job.wait(120) == [75, 75], job.output()
    newest = max(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir() if path.name.isdigit())
    assert job.output().count(f"stopped: step {newest} is saved") == 1
    assert f"resumed from the checkpoint of step {newest}" in run_job(tmp_path)
    assert metrics(tmp_path / "run") == undisturbed


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=on_day(4 + 7 * i, 21)) for i, how in enumerate(["flip", "truncate", "delete"])]
)
def test_all_processes_agree_on_the_checkpoint_before_a_damaged_one(how, undisturbed, tmp_path):
    config = {**SLOW, "steps": 20, "schedule": {"name": "constant"}}
    run_job(tmp_path, config=config)
    expected = metrics(tmp_path / "run")
    damage(tmp_path / "run/checkpoints", 20, how)
    output = run_job(tmp_path, config=config)
    assert output.count("checkpoint 20 is damaged and skipped") == 1, output
    assert "resumed from the checkpoint of step 16" in output and (tmp_path / "run/damaged-20").is_dir()
    assert metrics(tmp_path / "run") == expected


@on_day(9, 10)
def test_an_error_in_one_process_ends_the_others_with_its_line(tmp_path):
    hook = "from ssljax.data import dataset\nreal = dataset.Dataset.batch\n"
    hook += "def batch(self, step, *more, **options):\n"
    hook += "    if number == 1 and step == 7: raise OSError(5, 'Input/output error', 'shard-7')\n"
    hook += "    return real(self, step, *more, **options)\n"
    hook += "dataset.Dataset.batch = batch"
    job = start(tmp_path, hook=hook)
    assert job.wait(120) == [2, 2], job.output()
    first, second = (log.read_text() for log in job.logs)
    assert "stopped, since process 1 has left" in first and "shard-7" in first
    assert "error: shard-7: Input/output error" in second


@on_day(3, 10)
def test_another_number_of_processes_continues_the_run(undisturbed, tmp_path):
    job = start(tmp_path)
    await_step(job, tmp_path / "run", 9)
    job.processes[1].terminate()
    assert job.wait(120) == [75, 75], job.output()
    run.train({**SLOW, "mesh": {"data": 2, "fsdp": 2, "tensor": 2}}, tmp_path / "run")
    assert [line["batch_hash"] for line in metrics(tmp_path / "run")] == [line["batch_hash"] for line in undisturbed]
    close(metrics(tmp_path / "run"), undisturbed, 1e-2)


@on_day(9, 10)
def test_a_second_job_is_refused_and_the_first_goes_on(tmp_path):
    first = start(tmp_path)
    await_step(first, tmp_path / "run", 3)
    second = jobs.start(tmp_path / "logs-2", [jobs.train(SLOW, tmp_path / "run")], 2, 2)
    assert second.wait(120) == [2, 2], second.output()
    assert second.output().count("error: --workdir: another process is training in") == 1, second.output()
    assert first.wait() == [0, 0]


# Jobs whose processes share no folder: the workdir is an address, and each process has a cache of its own.


BUCKET = {**SLOW, "steps": 16, "mesh": {"data": 1, "fsdp": -1}, "schedule": {"name": "constant"}}
BUCKET |= {"model": {**SLOW["model"], "depth": 1}}
BUCKET |= {"evals": {"loss": {"test_split": "train", "batch_size": 32, "max_examples": 64, "every_steps": 4}}}
BUCKET |= {"checkpoint": {"every_steps": 4, "keep": 2, "best": {"metric": "loss/loss", "mode": "min"}}}


def start_apart(tmp_path, machine, config=BUCKET, hook="", processes=2, **options):
    """A job with 4 devices whose processes are on machines of their own, which have no files of earlier starts."""
    command = jobs.train(config, tmp_path / "run", f"disk://{tmp_path}/bucket/run")
    hook = jobs.apart(tmp_path / machine) + hook
    return jobs.start(tmp_path / f"logs-{machine}", [command], processes, 4 // processes, hook=hook, **options)


def run_apart(tmp_path, machine, config=BUCKET, **options):
    job = start_apart(tmp_path, machine, config, **options)
    assert set(job.wait()) == {0}, job.output()
    return job.output()


def marks(tmp_path):
    return {int(path.stem) for path in (tmp_path / "bucket/run/.complete").glob("*.json")}


def mark_of(tmp_path, step):
    return json.loads((tmp_path / f"bucket/run/.complete/{step}.json").read_text())["files"]


def shards(cache, step):
    """Names of the shards of a step in the mirror of a process."""
    (state,) = cache.glob(f"workdirs/*/run/checkpoints/{step}/state")
    return {path.relative_to(state).as_posix() for path in state.glob("*/[0-9]*")}


@pytest.fixture(scope="module")
def one_disk(tmp_path_factory):
    """The run of two processes in a folder that both see."""
    folder = tmp_path_factory.mktemp("one-disk")
    run_job(folder, config=BUCKET)
    return folder / "run"


@on_day(7, 20)
def test_a_killed_job_at_an_address_is_continued_bit_for_bit(one_disk, tmp_path):
    killed = start_apart(tmp_path, "first", hook=jobs.killed_while_sending(12))
    codes = killed.wait()
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 75), killed.output()
    bucket = tmp_path / "bucket/run"
    assert max(marks(tmp_path)) == 8 and list((bucket / "checkpoints/12").rglob("*")), "half-sent"
    put = {name.partition("/")[0] for name in mark_of(tmp_path, 8)}
    assert put >= {"meta", "state", "metrics", "_CHECKPOINT_METADATA"}
    output = run_apart(tmp_path, "second")
    assert "resumed from the checkpoint of step 8" in output
    first, second = (shards(tmp_path / f"second/{number}", 16) for number in (0, 1))
    assert first and second and not first & second, "each process writes and sends its own"
    assert {f"state/{name}" for name in first | second} <= mark_of(tmp_path, 16).keys()
    assert metrics(bucket) == metrics(one_disk) and evaluations(bucket)[-1]["metrics"]
    assert marks(tmp_path) >= {12, 16} and not (bucket / ".lease").exists()
    check_read(tmp_path, bucket, one_disk)


def check_read(tmp_path, bucket, expected):
    """Commands of one process read what two have written; a copy of the bucket is a workdir."""
    saved = parameters(bucket)
    for path, value in parameters(expected).items():
        np.testing.assert_array_equal(saved[path], value, err_msg=path)


@on_day(6, 10)
def test_jobs_of_other_sizes_continue_a_run_at_an_address(one_disk, tmp_path):
    """Two processes, then one, then two again."""
    expected = metrics(one_disk)
    for steps, processes in ((4, 2), (8, 1), (16, 2)):
        config = {**BUCKET, "steps": steps}
        output = run_apart(tmp_path, f"machine-{steps}", config, processes=processes)
        assert steps == 4 or f"resumed from the checkpoint of step {steps // 2}" in output
    found = metrics(tmp_path / "bucket/run")
    assert [line["batch_hash"] for line in found] == [line["batch_hash"] for line in expected]
    # Adam makes full steps from gradients that are zero but for round-off; the largest difference seen is 6e-4.
    close(found, expected, 2e-3)


@on_day(2, 10)
def test_a_damaged_checkpoint_at_an_address_is_skipped_by_all(one_disk, tmp_path):
    config = {**BUCKET, "checkpoint": {**BUCKET["checkpoint"], "best": None}}
    run_apart(tmp_path, "first", config)
    bucket, expected = tmp_path / "bucket/run", metrics(tmp_path / "bucket/run")
    assert expected == metrics(one_disk)
    largest = max((bucket / "checkpoints/16/state").rglob("[0-9]*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    output = run_apart(tmp_path, "second", config)
    assert output.count("checkpoint 16 is damaged and skipped") == 1, output
    assert "resumed from the checkpoint of step 12" in output
    assert metrics(bucket) == expected and (bucket / "damaged-16/state").is_dir() and marks(tmp_path) == {12, 16}


@on_day(8, 10)
def test_sigterm_of_one_process_leaves_a_sent_checkpoint_at_an_address(one_disk, tmp_path):
    job, bucket = start_apart(tmp_path, "first"), tmp_path / "bucket/run"
    await_step(job, bucket, 5)
    job.processes[1].terminate()
    assert job.wait() == [75, 75], job.output()
    newest = max(marks(tmp_path))
    assert f"stopped: step {newest} is saved" in job.output()
    assert f"resumed from the checkpoint of step {newest}" in run_apart(tmp_path, "second")
    assert metrics(bucket) == metrics(one_disk)


@on_day(4, 10)
def test_a_process_that_cannot_send_ends_its_job_with_its_line(tmp_path):
    hook = "from ssljax.base import buckets\n"
    hook += "def refuse(self, file, name):\n"
    hook += "    raise buckets.BucketError(f'--workdir: cannot write {name}: no permission', denied=True)\n"
    hook += "if number == 1: buckets.Bucket.upload = refuse\n"
    job = start_apart(tmp_path, "first", {**BUCKET, "steps": 4000}, hook)
    assert job.wait() == [2, 2], job.output()
    first, second = (log.read_text() for log in job.logs)
    assert "stopped, since process 1 has left: --workdir: cannot write checkpoints/" in first
    assert "error: --workdir: cannot write checkpoints/" in second and not marks(tmp_path)
