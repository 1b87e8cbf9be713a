"""Workdirs at an address: sent, taken on another machine, half-sent, held, and refused in one line."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import disk  # noqa: F401  (registers disk://)
import fsspec
import jax
import jobs
import numpy as np
import pytest
from daily import on_day
from jax.tree_util import tree_leaves_with_path as leaves
from test_run import TINY, metrics, same

from ssljax import cli, run, runs
from ssljax.base import locks
from ssljax.base.buckets import Bucket, BucketError
from ssljax.base.errors import UserError
from ssljax.base.locks import leased_object
from ssljax.runs import mirror
from ssljax.runs.workdir import Workdir

VIT = {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4}
SHORT = {
    **TINY,
    "model": VIT,
    "steps": 6,
    "log": {**TINY["log"], "every_steps": 1},
    "checkpoint": {"every_steps": 2, "keep": 2},
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes this process another machine, without mirrors."""

    def new(name):
        monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path / f"cache-{name}"))

    new("first")
    monkeypatch.setattr(mirror, "_FRESH", 0.0)
    monkeypatch.setattr(mirror, "INTERVAL", 0.05)
    return new


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_files_and_checkpoints_are_sent_and_taken_by_another_machine(tmp_path, machine):
    bucket, address = tmp_path / "bucket" / "run", f"disk://{tmp_path}/bucket/run"
    here = mirror.opened(address)
    assert here.folder.name == "run"
    with here.held(), here.sending():
        put(here.folder, {"config.json": "{}", "pictures/a.png": "p", ".trackers.json": "{}", "x.tmp": "", ".y": ""})
        put(here.folder, {"checkpoints/2/state/d/1": "two", "checkpoints/4.orbax-checkpoint-tmp/state": "half"})
        wait_for(lambda: (bucket / ".complete" / "2.json").exists())
        assert names(bucket) >= {"config.json", "pictures/a.png", ".trackers.json", "checkpoints/2/state/d/1"}
        put(here.folder, {"checkpoints/4/state/d/1": "four", "checkpoints/4/state/d/2": "4", "config.json": "{ }"})
        put(here.folder, {"checkpoints/4/_METADATA": "m"})
        shutil.rmtree(here.folder / "checkpoints" / "2")
        (here.folder / "pictures" / "a.png").unlink()
    assert names(bucket) == {
        "config.json",
        ".trackers.json",
        "checkpoints/4/_METADATA",
        "checkpoints/4/state/d/1",
        "checkpoints/4/state/d/2",
        ".complete/4.json",
    }
    machine("second")
    there = mirror.opened(address)
    there.take_checkpoints()
    assert there.folder != here.folder
    assert names(there.folder) == {"config.json", ".trackers.json", "checkpoints/4/_METADATA"}
    there.fetch(4, lambda name: name == "state/d/1")  # a shard is taken where it is needed
    assert names(there.folder / "checkpoints") == {"4/_METADATA", "4/state/d/1"}
    assert (there.folder / "config.json").read_text() == "{ }"
    with pytest.raises(UserError, match=r"no checkpoint of step 2 \(there are: \[4\]\)"):
        there.take_checkpoints(2)


def test_a_half_sent_checkpoint_does_not_count_and_is_removed(tmp_path, machine):
    bucket = tmp_path / "run"
    put(bucket, {"checkpoints/2/a": "12", ".complete/2.json": '{"files": {"a": 2}}', "checkpoints/4/a": "half"})
    put(bucket, {"checkpoints/6/a": "12", ".complete/6.json": '{"files": {"a": 2, "gone": 5}}'})
    here = mirror.opened(f"disk://{bucket}")
    here.take_checkpoints()
    assert names(here.folder) == {"checkpoints/2/a"}
    assert (bucket / "checkpoints/4/a").exists()  # a reader changes nothing
    with here.held(), here.sending():
        assert not (bucket / "checkpoints/4").exists() or not names(bucket / "checkpoints/4")
    assert "checkpoints/2/a" in names(bucket)


def test_a_damaged_checkpoint_is_kept_under_another_name(tmp_path, machine):
    bucket = tmp_path / "run"
    here = mirror.opened(f"disk://{bucket}")
    with here.held(), here.sending():
        put(here.folder, {"checkpoints/2/state/d/1": "two"})
        wait_for(lambda: (bucket / ".complete/2.json").exists())
        put(bucket, {"damaged-2/state": "earlier"})
        here.set_aside(2)
        assert names(bucket) >= {"damaged-2/state", "damaged-2-again/state/d/1"}
        put(here.folder, {"checkpoints/2/state/d/1": "new"})  # of the same size
    assert (bucket / "checkpoints/2/state/d/1").read_text() == "new"
    assert (bucket / "damaged-2-again/state/d/1").read_text() == "two"


def test_a_shard_that_has_gone_is_damage_and_not_an_error_of_the_storage(tmp_path, machine):
    bucket = tmp_path / "run"
    put(bucket, {"checkpoints/2/state/d/1": "12", ".complete/2.json": '{"files": {"state/d/1": 2}}'})
    here = mirror.opened(f"disk://{bucket}")
    here.take_checkpoints()
    (bucket / "checkpoints/2/state/d/1").unlink()
    with pytest.raises(LookupError, match="checkpoints/2/state/d/1"):
        here.fetch(2, lambda name: True)


def test_an_error_of_this_machine_is_no_damaged_checkpoint(tmp_path, machine, monkeypatch):
    """The run began at step 0 and emptied metrics.jsonl, also in the bucket."""
    put(tmp_path / "run", {"checkpoints/2/a": "12", ".complete/2.json": '{"files": {"a": 2}}'})
    here = mirror.opened(f"disk://{tmp_path}/run")

    def full(self, name, file):
        raise BucketError("--workdir: cannot read a: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "download", full)
        with pytest.raises(BucketError, match="No space left"):
            here.take_checkpoints()
    here.take_checkpoints()
    assert names(here.folder) == {"checkpoints/2/a"}


@pytest.mark.parametrize("files", ['{"a": 3}', '{"a": 2, "gone": 1}'])
def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path, machine, files):
    put(tmp_path / "run", {"checkpoints/2/a": "12", ".complete/2.json": f'{{"files": {files}}}'})
    with pytest.raises(UserError, match=r"none of the checkpoints \[2\] is whole; restore a copy"):
        mirror.opened(f"disk://{tmp_path}/run").take_checkpoints()


class Notes:
    """The board of one of two processes."""

    def __init__(self, notes, process):
        self.notes, self.process = notes, process

    def write(self, topic, note):
        self.notes[topic, self.process] = note

    def read(self, topic, process=0):
        return (self.notes[topic, process],) if (topic, process) in self.notes else None

    def all(self, topic):
        notes = [self.read(topic, process) for process in (0, 1)]
        return None if None in notes else [note for (note,) in notes]

    def remove(self, topic):
        for process in (0, 1):
            self.notes.pop((topic, process), None)


def test_a_checkpoint_counts_once_every_process_has_sent_its_part(tmp_path, machine, monkeypatch):
    bucket, notes = tmp_path / "run", {}
    first = mirror.opened(f"disk://{bucket}")
    machine("second")
    second = mirror.opened(f"disk://{bucket}")
    assert second.folder != first.folder
    first._board, second._board = Notes(notes, 0), Notes(notes, 1)
    monkeypatch.setattr(mirror, "ANSWER", 0.01)
    put(second.folder, {"config.json": "another", "checkpoints/2/state/a/1": "two"})

    def sent(step, answer):
        """Files of the mark after the second process has answered; None: there is no mark."""
        put(first.folder, {f"checkpoints/{step}/_METADATA": "m", f"checkpoints/{step}/state/a/0": "one"})
        leader = threading.Thread(target=first.send)
        monkeypatch.setattr(mirror.parallel, "leads", lambda: threading.current_thread() is leader)
        leader.start()
        wait_for(lambda: (f"sent-{second._asked}", 0) in notes)
        second._answer()  # it is not written yet
        assert not (bucket / f".complete/{step}.json").exists()
        answer()
        second._answer()
        leader.join(10)
        assert not leader.is_alive() and not notes
        mark = bucket / f".complete/{step}.json"
        return json.loads(mark.read_text())["files"] if mark.exists() else None

    written = {"checkpoints/4/_METADATA": "m", "checkpoints/4/state/a/1": "four", "config.json": "another"}
    expected = {"_METADATA": 1, "state/a/0": 3, "state/a/1": 4}
    assert sent(4, lambda: put(second.folder, written)) == expected
    assert names(bucket) == {".complete/4.json", *(f"checkpoints/4/{name}" for name in expected)}
    # The run has gone on, and the second process has removed what is asked for.
    assert sent(6, lambda: put(second.folder, {"checkpoints/8/state/a/1": "eight"})) is None
    shutil.rmtree(first.folder / "checkpoints/6")
    assert sent(10, lambda: put(second.folder, {"checkpoints/10/state/a/1": "ten"})) is not None
    assert not (bucket / "checkpoints/6/_METADATA").exists(), "half-sent"


def test_lines_that_could_not_be_sent_are_kept(tmp_path, machine, monkeypatch):
    put(tmp_path / "run", {"evals.jsonl": "1\n"})
    here = mirror.opened(f"disk://{tmp_path}/run")
    put(here.folder, {"evals.jsonl": "1\n2\n"})
    here.take_file("evals.jsonl")
    assert (here.folder / "evals.jsonl").read_text() == "1\n2\n"
    here.send_files()
    put(tmp_path / "run", {"evals.jsonl": "1\n2\n3\n"})
    here.take_file("evals.jsonl")
    assert (here.folder / "evals.jsonl").read_text() == "1\n2\n3\n"


def test_the_bucket_is_the_truth(tmp_path, machine):
    """Files that a killed job has not sent are dropped; a checkpoint of the mirror is not taken again."""
    bucket = tmp_path / "run"
    here = mirror.opened(f"disk://{bucket}")
    with here.held(), here.sending():
        put(here.folder, {"metrics.jsonl": "1\n", "checkpoints/2/a": "two"})
    put(here.folder, {"metrics.jsonl": "1\n2\n", "evals.jsonl": "3\n", "checkpoints/4/a": "four"})
    (bucket / "checkpoints/2/a").write_text("xxx")
    here.take()
    here.take_checkpoints()
    assert names(here.folder) == {"metrics.jsonl", "checkpoints/2/a"}
    assert (here.folder / "metrics.jsonl").read_text() == "1\n"
    assert (here.folder / "checkpoints/2/a").read_text() == "two"


def test_a_file_that_is_added_to_a_checkpoint_is_sent_too(tmp_path, machine):
    here = mirror.opened(f"disk://{tmp_path}/run")
    with here.held(), here.sending():
        put(here.folder, {"checkpoints/2/a": "two"})
        wait_for(lambda: (tmp_path / "run/.complete/2.json").exists())
        put(here.folder, {"checkpoints/2/metrics/metrics": "{}"})
    mark = json.loads((tmp_path / "run/.complete/2.json").read_text())
    assert mark["files"] == {"a": 3, "metrics/metrics": 2} and (tmp_path / "run/checkpoints/2/metrics/metrics").exists()


def test_checkpoints_stay_until_later_ones_are_sent(tmp_path, machine, monkeypatch):
    here = mirror.opened(f"disk://{tmp_path}/run")
    with here.held():
        here.take_checkpoints()
        put(here.folder, {"checkpoints/2/a": "two"})
        here.send()
        shutil.rmtree(here.folder / "checkpoints/2")
        put(here.folder, {"checkpoints/4/a": "four"})
        upload = Bucket.upload

        def failing(self, file, name):
            if name.startswith("checkpoints/4"):
                raise BucketError("full")
            upload(self, file, name)

        monkeypatch.setattr(Bucket, "upload", failing)
        with pytest.raises(BucketError):
            here.send()
        assert (tmp_path / "run/checkpoints/2/a").exists() and (tmp_path / "run/.complete/2.json").exists()
        monkeypatch.setattr(Bucket, "upload", upload)
        here.send()
        assert sorted(p.name for p in (tmp_path / "run/.complete").iterdir()) == ["4.json"]


def test_errors_of_the_thread_stop_the_run_and_passing_ones_do_not(tmp_path, machine, monkeypatch):
    here = mirror.opened(f"disk://{tmp_path}/run")
    errors = [BucketError("reset", passing=True), BucketError("no permission", denied=True)]
    with pytest.raises(UserError, match="no permission"), here.held(), here.sending():
        send = here.send

        def failing():
            if errors:
                raise errors.pop(0) if len(errors) > 1 else errors[0]
            send()

        monkeypatch.setattr(here, "send", failing)
        wait_for(lambda: here._error is not None)
        assert len(errors) == 1  # the first one has passed
        monkeypatch.setattr(here, "send", lambda: None)
        here.check()


def test_a_second_job_is_refused_while_the_first_lives(tmp_path, machine, monkeypatch):
    address = f"disk://{tmp_path}/run"
    with mirror.opened(address).held():
        machine("second")
        refused = pytest.raises(UserError, match=rf"training in '{address}' \(process {os.getpid()} of")
        with refused, Workdir(address).lock():
            pass
    with Workdir(address).lock():
        assert (tmp_path / "run/.lease").exists()
    assert not (tmp_path / "run/.lease").exists()


@pytest.mark.parametrize("alive", [True, False])
def test_a_job_of_another_machine(tmp_path, monkeypatch, alive):
    """It holds the address while it raises its number."""
    bucket, other = (
        Bucket(f"memory://{tmp_path.name}/{alive}", "--workdir"),
        {"host": "other", "machine": "m", "pid": 1},
    )
    bucket.write(".lease", json.dumps({**other, "started": "1", "nonce": "n", "number": 0}).encode())
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if alive:
            bucket.write(".lease", json.dumps({**other, "started": "1", "nonce": "n", "number": 1}).encode())
        sleep(0.01)

    sleep = time.sleep
    monkeypatch.setattr(locks.time, "sleep", nap)
    if alive:
        with pytest.raises(BlockingIOError, match="process 1 of other"), leased_object(bucket, ".lease", 0.3):
            pass
    else:
        with leased_object(bucket, ".lease", 0.3):
            assert json.loads(bucket.read(".lease"))["pid"] == os.getpid()
    assert naps


def test_a_job_that_finds_another_in_its_place_gives_way(tmp_path, monkeypatch):
    """Two jobs that found the same dead lease: the one whose object was replaced is refused."""
    bucket = Bucket(f"memory://{tmp_path.name}/run", "--workdir")
    bucket.write(".lease", b"{")  # half-written: free
    theirs = json.dumps({"host": "other", "pid": 7, "nonce": "theirs"}).encode()
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: bucket.write(".lease", theirs))
    with pytest.raises(BlockingIOError, match="process 7 of other"), leased_object(bucket, ".lease", 0.3):
        pass
    assert bucket.read(".lease") == theirs


def test_a_run_on_a_bucket_is_continued_bit_for_bit_and_read(tmp_path, machine, capsys):
    """The bucket is copied after the checkpoint of step 4, as a kill would leave it, and another machine continues."""
    bucket, killed = tmp_path / "bucket/run", tmp_path / "killed/run"

    def copy(done, state):
        if done == 5:
            wait_for(lambda: (bucket / ".complete/4.json").exists())
            shutil.copytree(bucket, killed, ignore=shutil.ignore_patterns(".lease"))

    whole = run.train(SHORT, f"disk://{bucket}", callbacks=[(1, copy)])
    expected = metrics(bucket)
    assert {p.name for p in (bucket / ".complete").iterdir()} == {"4.json", "6.json"}
    machine("second")
    put(killed, {"checkpoints/5/state/half": "x"})
    continued = run.train(SHORT, f"disk://{killed}")
    assert continued.workdir != whole.workdir and len(Workdir(f"disk://{killed}").starts()) == 2
    assert metrics(killed) == expected and [line["step"] for line in expected] == [1, 2, 3, 4, 5, 6]
    same(*({jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves(done.state)} for done in (continued, whole)))
    machine("third")
    trained = runs.load(f"disk://{killed}")
    assert trained.step == 6
    same(*({jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves(p)} for p in (trained.params, whole.params)))
    assert cli.main(["report", f"disk://{killed}"]) == 0
    assert f"disk://{killed}/report.html" in capsys.readouterr().out
    (killed / "report.html").unlink()
    assert cli.main(["report", f"disk://{killed}"]) == 0 and (killed / "report.html").exists()
    assert cli.main(["compare", f"disk://{killed}", f"disk://{bucket}", "--out", str(tmp_path / "c.html")]) == 0


def test_mistakes_are_one_line_before_anything_is_trained(tmp_path, machine, monkeypatch):
    def refuse(self, *arguments, **more):
        raise PermissionError("Access Denied")

    from fsspec.implementations.memory import MemoryFileSystem

    with pytest.raises(UserError, match=r"'memory://nothing/run' holds no config.json"):
        Workdir("memory://nothing/run").config_values()
    with pytest.raises(UserError, match=r"memory://nothing/run.*holds no config.json"):
        runs.load("memory://nothing/run")
    with pytest.raises(UserError, match="arrays: cannot be kept in 'memory://nothing/run'"):
        run.train(SHORT, "memory://nothing/run", arrays={"image": np.zeros((4, 8, 8, 1))})
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(
        UserError, match=r"--workdir: cannot write memory://b/r/.lease: no permission .Access Denied.; give"
    ):
        run.train(SHORT, "memory://b/r")
    monkeypatch.setattr(MemoryFileSystem, "find", refuse)
    with pytest.raises(UserError, match=r"--workdir: cannot list memory://b/q: no permission .Access Denied."):
        run.train(SHORT, "memory://b/q")


# Restores the newest checkpoint, compares it with the arrays of its step, and saves the next two steps.
SAVES = """
import contextlib
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ssljax.runs.workdir import Workdir
from ssljax.train.checkpoint import CheckpointConfig, Checkpoints
everywhere = Mesh(np.asarray(jax.devices()), ("all",))
split, whole = (NamedSharding(everywhere, spec) for spec in (PartitionSpec("all"), PartitionSpec()))
def arrays(step):
    numbers = np.random.default_rng(step).normal(size=(32, 6)).astype(np.float32)
    return {"split": (numbers, split), "whole": (numbers[0], whole), "step": (np.int32(step), whole)}
def state(step):
    made = {k: jax.make_array_from_callback(x.shape, s, lambda i, x=x: x[i]) for k, (x, s) in arrays(step).items()}
    return {"a": made}
folder = parallel.together(lambda: Workdir(ADDRESS))
with parallel.joint_end(), contextlib.ExitStack() as stack:
    parallel.together(lambda: stack.enter_context(folder.lock()))
    stack.enter_context(folder.sending())
    checkpoints = Checkpoints(folder.checkpoints, CheckpointConfig(), {}, source=folder.source)
    stack.callback(checkpoints.close)
    checkpoints.prove()
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
    found, start = checkpoints.restore(target) or (None, 0)
    taken = sum(path.is_file() for path in folder.checkpoints.glob(f"{start}/state/a.split/[0-9]*"))
    for name, (expected, _) in arrays(start).items() if found else ():
        for shard in found["a"][name].addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[shard.index])
    print(f"restored {start}, {taken} shards", flush=True)
    for step in (start + 1, start + 2):
        checkpoints.save(state(step), step)
"""


def saves(tmp_path, address, name, processes, restored, taken):
    """Runs SAVES in processes on machines of their own; returns the output.

    Args:
        tmp_path: folder of logs and caches.
        address: the workdir.
        name: name of the machines.
        processes: number of processes, which have 4 devices together.
        restored: step that they restore.
        taken: number of shards of the array "split" that each takes.
    """
    hook = jobs.apart(tmp_path / name) + f"ADDRESS = {address!r}" + SAVES
    job = jobs.start(tmp_path / f"logs-{name}", [], processes, 4 // processes, hook=hook)
    assert job.wait() == [0] * processes, job.output()
    assert job.output().count(f"restored {restored}, {taken} shards") == processes, job.output()
    return job.output()


@on_day(0, 3)
def test_processes_without_a_common_disk_restore_what_others_have_saved(tmp_path):
    """Two processes, again after a shard of the newest checkpoint was damaged, then one, then two."""
    bucket, address = tmp_path / "bucket/run", f"disk://{tmp_path}/bucket/run"
    saves(tmp_path, address, "first", 2, 0, 0)
    assert names(bucket / "checkpoints/2/state") >= {"a.split/0.0", "a.split/3.0", "a.whole/0", "a.step/.zarray"}
    damaged = bucket / "checkpoints/2/state/a.split/3.0"  # of the second process
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"abcd")
    output = saves(tmp_path, address, "second", 2, 1, 2)
    assert output.count("checkpoint 2 is damaged and skipped") == 1
    assert (bucket / "damaged-2/state/a.split/3.0").read_bytes()[-4:] == b"abcd"
    saves(tmp_path, address, "third", 1, 3, 4)
    saves(tmp_path, address, "fourth", 2, 5, 0)  # one process writes no file for each shard


WORKER = """
import sys
from ssljax import cli
from ssljax.runs import mirror
mirror.INTERVAL = 0.2
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(params=["s3", "gs"])
def server(request, tmp_path, monkeypatch):
    """The address of a bucket in a server of this machine."""
    # The emulator does not tell the type of a bucket, and gcsfs would ask the cloud for it at each request.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    library = {"s3": ("s3fs", "moto"), "gs": ("gcsfs", "gcp_storage_emulator")}[request.param]
    for name in library:
        pytest.importorskip(name)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    url = f"http://localhost:{port}"
    if request.param == "s3":
        command = ["-m", "moto.server", "-p", str(port)]
        given = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": url}
        given |= {"AWS_DEFAULT_REGION": "us-east-1"}
    else:
        start = "import sys; from gcp_storage_emulator.__main__ import main; main(sys.argv[1:])"
        command = ["-c", start, "start", "--host=localhost", f"--port={port}", "--in-memory"]
        given = {"STORAGE_EMULATOR_HOST": url, "GOOGLE_CLOUD_PROJECT": "test"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: socket.socket().connect_ex(("localhost", port)) == 0)
        system = fsspec.filesystem(request.param, skip_instance_cache=True)
        system.mkdir("ssljax-tests")
        yield f"{request.param}://ssljax-tests/deep/run"
    finally:
        process.kill()


@pytest.mark.full
def test_a_killed_run_is_continued_from_a_real_server(server, tmp_path, monkeypatch):
    """Signal 9 while checkpoints are sent; another machine continues, and a second job is refused before."""
    config = {**SHORT, "steps": 40, "checkpoint": {"every_steps": 4}}
    whole = run.train(config, tmp_path / "whole")
    file = tmp_path / "config.py"
    file.write_text(f"def get_config(arg=''):\n    return {config!r}\n")
    command = [sys.executable, "-c", WORKER, "train", "--config", str(file), "--workdir", server]
    bucket = Bucket(server, "--workdir")
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, env={**os.environ, "SSLJAX_CACHE": str(tmp_path / "one")}, stderr=log)
        wait_for(lambda: first.poll() is not None or any(n > ".complete/1" for n in bucket.sizes(".complete")), 300)
        with pytest.raises(UserError, match="another process is training in"), Workdir(server).lock():
            pass
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path / "two"))
    continued = run.train(config, server)
    assert metrics(continued.workdir) == metrics(whole.workdir) and len(Workdir(server).starts()) == 2
    same(*({jax.tree_util.keystr(k): np.asarray(v) for k, v in leaves(done.state)} for done in (continued, whole)))
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path / "three"))
    assert runs.load(server).step == 40 and ".lease" not in bucket.sizes()
    missing = server.replace("ssljax-tests", "ssljax-missing")
    with pytest.raises(UserError, match=rf"--workdir: cannot write {missing}/.lease: not found .*; make the bucket"):
        run.train(config, missing)


@pytest.mark.full
def test_processes_share_a_real_server(server, tmp_path):
    saves(tmp_path, server, "first", 2, 0, 0)
    saves(tmp_path, server, "second", 2, 2, 2)
    saves(tmp_path, server, "third", 1, 4, 4)


@pytest.mark.full
def test_a_killed_job_of_two_processes_is_continued_from_a_real_server(server, tmp_path):
    """Signal 9 while the second process sends its shards; other machines continue."""
    config = {**SHORT, "steps": 12, "checkpoint": {"every_steps": 4}, "mesh": {"data": 1, "fsdp": -1}}

    def start(name, address=None, hook=""):
        hook = jobs.apart(tmp_path / f"caches-{name}") + hook
        return jobs.start(tmp_path / f"logs-{name}", [jobs.train(config, tmp_path / name, address)], 2, 2, hook=hook)

    one_disk = start("whole")
    assert one_disk.wait() == [0, 0], one_disk.output()
    killed = start("first", server, jobs.killed_while_sending(12))
    assert killed.wait()[1] == -signal.SIGKILL, killed.output()
    bucket = Bucket(server, "--workdir")
    assert set(bucket.sizes(".complete")) == {".complete/4.json", ".complete/8.json"}
    continued = start("second", server)
    assert continued.wait() == [0, 0], continued.output()
    assert "resumed from the checkpoint of step 8" in continued.output()
    (tmp_path / "metrics.jsonl").write_bytes(bucket.read("metrics.jsonl"))
    assert metrics(tmp_path) == metrics(tmp_path / "whole") and ".lease" not in bucket.sizes()
    assert runs.load(server).step == 12
