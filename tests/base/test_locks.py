"""Locks and leases between processes."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from ssljax.base import locks
from ssljax.base.locks import leased, locked

HOLD = """
import pathlib, sys, time
from ssljax.base.locks import leased
with leased(pathlib.Path(sys.argv[1])):
    print("taken", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lease of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lease")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"taken\n"
    yield process
    process.kill()
    process.wait()


def from_elsewhere(path):
    """Rewrites a lease as if another machine had written it."""
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "host": "elsewhere"}))


def test_a_lock_excludes(tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
        pass


def test_a_second_job_is_refused_at_once_and_told_by_whom(holder, tmp_path):
    began = time.monotonic()
    with pytest.raises(BlockingIOError, match=f"process {holder.pid} of"), leased(tmp_path / ".lease"):
        pass
    assert time.monotonic() - began < 5
    with pytest.raises(BlockingIOError), leased(tmp_path / ".lease"):
        pass  # being refused does not end the lease of the other


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_job_frees_its_lease_at_once(holder, tmp_path, reaped):
    holder.kill()
    if reaped:
        holder.wait()
    began = time.monotonic()
    time.sleep(0.2)
    with leased(tmp_path / ".lease"):
        assert time.monotonic() - began < 5
    assert not (tmp_path / ".lease").exists()


def test_another_process_with_the_number_of_the_dead_one_holds_nothing(tmp_path):
    """After a restart of the machine, or when numbers have run out."""
    stale = {**locks.this_process(), "started": "1"}
    (tmp_path / ".lease").write_text(json.dumps(stale))
    with leased(tmp_path / ".lease"):
        pass


def test_a_lease_of_another_machine_is_refused_while_it_is_renewed(holder, tmp_path):
    path = tmp_path / ".lease"
    from_elsewhere(path)
    ended = threading.Event()
    content = path.read_text()
    thread = threading.Thread(target=locks._renew, args=(path, content, 0.2, ended))
    thread.start()
    try:
        with pytest.raises(BlockingIOError, match="of elsewhere"), leased(path, expiry=3):
            pass
    finally:
        ended.set()
        thread.join()


def test_a_lease_of_another_machine_ends_when_it_is_not_renewed(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / ".lease"
    path.write_text(json.dumps({"host": "elsewhere", "machine": "x", "pid": 1, "started": "2", "nonce": "3"}))
    began = time.monotonic()
    with leased(path, expiry=1):
        assert 0.5 < time.monotonic() - began < 10
    assert "waiting up to 1 s for a sign of life of process 1 of elsewhere" in caplog.text
    old = time.time() - 100
    path.write_text(json.dumps({"host": "elsewhere", "machine": "x", "pid": 1, "started": "2", "nonce": "3"}))
    os.utime(path, (old, old))
    with leased(path, expiry=60):  # it had expired before
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_half_written_lease_is_free(tmp_path, content):
    (tmp_path / ".lease").write_text(content)
    with leased(tmp_path / ".lease"):
        pass


def test_a_file_system_without_locks_has_leases(tmp_path, monkeypatch):
    def absent(*arguments, **options):
        raise NotImplementedError

    monkeypatch.setattr(locks.filelock.FileLock, "acquire", absent)
    with leased(tmp_path / ".lease"), pytest.raises(BlockingIOError), leased(tmp_path / ".lease"):
        pass


def test_a_lease_that_somebody_removed_is_written_again(tmp_path):
    path = tmp_path / ".lease"
    with leased(path, expiry=0.3):
        content = path.read_text()
        path.unlink()
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.read_text() == content
    assert not path.exists()


def test_a_job_that_has_lost_its_lease_ends(tmp_path):
    """It was stopped for longer than the lease lasts, and another job trains there now."""
    code = HOLD.replace("[1]))", "[1]), expiry=0.6)")
    path = tmp_path / ".lease"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        p.stdout.readline()
        from_elsewhere(path)
        assert p.wait(30) == 2
        assert b"taken over by process" in p.stderr.read()
