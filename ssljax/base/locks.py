"""Locks between processes."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import platform
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import filelock

from ssljax.base.buckets import Bucket, BucketError
from ssljax.base.files import write_whole

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: pathlib.Path, wait: bool = True) -> Iterator[None]:
    """A context that holds the lock file `path`. The system releases the lock if the process dies.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
        OSError: the file cannot be written, or the file system has no locks.
    """
    lock = filelock.FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BlockingIOError(f"{path} is locked") from error
    except NotImplementedError as error:
        raise OSError(errno.ENOLCK, "the file system has no locks", str(path)) from error
    try:
        yield
    finally:
        lock.release()


EXPIRY = 60.0  # seconds after which a lease that is not renewed is free


@contextlib.contextmanager
def leased(path: pathlib.Path, expiry: float = EXPIRY) -> Iterator[None]:
    """A context that holds a folder for one job, by the file `path` in it, on file systems without locks too.

    The file names the process that holds the lease. A thread renews it by its modification time. A lease is free again
    if its process has ended, or, if that ran on another machine, if it was not renewed for `expiry` seconds by the
    clock of the file system; a process waits that long for it.

    Raises:
        BlockingIOError: another process holds the lease; the message names it.
        OSError: the file cannot be written.
    """
    own = json.dumps({**this_process(), "nonce": uuid.uuid4().hex})
    _take(path, own, expiry)
    ended = threading.Event()
    threading.Thread(target=_renew, args=(path, own, expiry / 3, ended), name="lease", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if _content(path) == own:
            path.unlink(missing_ok=True)


def _take(path: pathlib.Path, own: str, expiry: float) -> None:
    with _guarded(path.with_name(f"{path.name}.lock")):
        if holder := _content(path):
            _await_end(path, holder, expiry)
        write_whole(path, own)
    if _content(path) != own:  # on a file system without locks, another process was faster
        raise BlockingIOError(_name(_content(path)))


@contextlib.contextmanager
def _guarded(path: pathlib.Path) -> Iterator[None]:
    """Excludes other processes that take the lease now, where the file system has locks."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except OSError as error:
            if error.errno != errno.ENOLCK:
                raise
        yield


def _await_end(path: pathlib.Path, holder: str, expiry: float) -> None:
    """Returns once the holder of a lease has ended or does not renew it.

    Raises:
        BlockingIOError: the holder is alive.
    """
    alive = is_alive(holder)
    if alive is False:
        return
    if alive is None:
        log.info("%s: waiting up to %d s for a sign of life of %s", path, expiry, _name(holder))
    renewed = _modified(path)
    while not alive and _clock_of(path.parent) - renewed < expiry:
        time.sleep(min(1.0, expiry / 10))
        alive = _content(path) != holder or _modified(path) > renewed
        if not path.exists():
            return
    if alive:
        raise BlockingIOError(_name(_content(path) or holder))


def _renew(path: pathlib.Path, own: str, every: float, ended: threading.Event) -> None:
    while not ended.wait(every):
        with contextlib.suppress(OSError):  # the next renewal may succeed
            found = _content(path)
            if ended.is_set():
                return
            if not found:  # somebody has removed it
                write_whole(path, own)
            elif found != own:  # this process was stopped for so long that another job has taken over
                print(f"error: {path}: taken over by {_name(found)}", file=sys.stderr, flush=True)
                os._exit(2)
            os.utime(path)


@contextlib.contextmanager
def leased_object(bucket: Bucket, name: str, expiry: float = EXPIRY) -> Iterator[None]:
    """A context that holds what is below an address for one job, by an object there.

    The object is made by a request that fails if it exists. It names the process that holds the lease and a number,
    which a thread raises. A lease is free again if its process has ended, or, if that ran on another machine, if the
    number stays the same for `expiry` seconds; a process waits that long for it.

    Raises:
        BlockingIOError: another process holds the lease; the message names it.
        BucketError: the object cannot be written.
    """
    nonce = uuid.uuid4().hex
    _create(bucket, name, nonce, expiry)
    ended = threading.Event()
    renewal = threading.Thread(target=_raise_number, args=(bucket, name, nonce, expiry / 3, ended), name="lease")
    renewal.daemon = True
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join(expiry)  # a renewal that ends later would leave the object behind
        with contextlib.suppress(BucketError):
            if _nonce(bucket.read(name)) == nonce:
                bucket.remove([name])


def _create(bucket: Bucket, name: str, nonce: str, expiry: float) -> None:
    own = _numbered(nonce, 0)
    if not bucket.create(name, own):
        holder = bucket.read(name)
        if holder is not None:
            _await_silence(bucket, name, holder, expiry)
            bucket.remove([name])
        if not bucket.create(name, own):
            raise BlockingIOError(_name((bucket.read(name) or b"").decode()))
        # Another process that found the same silence may have removed this object and made its own.
        time.sleep(min(2.0, expiry / 10))
    if _nonce(found := bucket.read(name)) != nonce:
        raise BlockingIOError(_name((found or b"").decode()))


def _await_silence(bucket: Bucket, name: str, holder: bytes, expiry: float) -> None:
    """Returns once the holder of a lease has ended or does not renew it.

    Raises:
        BlockingIOError: the holder is alive.
    """
    alive, began = is_alive(holder.decode(errors="replace")), time.monotonic()
    if alive is False:
        return
    if alive is None:
        log.info("%s: waiting up to %d s for a sign of life of %s", bucket.address, expiry, _name(holder.decode()))
    while not alive and time.monotonic() - began < expiry:
        time.sleep(min(2.0, expiry / 10))
        found = bucket.read(name)
        if found is None:
            return
        alive = found != holder
    if alive:
        raise BlockingIOError(_name(holder.decode()))


def _raise_number(bucket: Bucket, name: str, nonce: str, every: float, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(every):
        with contextlib.suppress(BucketError):  # the next renewal may succeed
            found = bucket.read(name)
            if found is not None and _nonce(found) != nonce:  # this process was stopped, and another job has taken over
                print(f"error: {bucket.address}: taken over by {_name(found.decode())}", file=sys.stderr, flush=True)
                os._exit(2)
            number += 1
            bucket.write(name, _numbered(nonce, number))


def _numbered(nonce: str, number: int) -> bytes:
    return json.dumps({**this_process(), "nonce": nonce, "number": number}).encode()


def _nonce(content: bytes | None) -> str | None:
    try:
        return json.loads(content or b"")["nonce"]
    except (ValueError, LookupError, TypeError):
        return None


def this_process() -> dict[str, Any]:
    """Returns what tells this process from every other one, on this machine and elsewhere, as JSON values."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text().strip() if boot.exists() else platform.node()
    return {"host": platform.node(), "machine": machine, "pid": os.getpid(), "started": _started(os.getpid())}


def is_alive(holder: str) -> bool | None:
    """Returns True if the process of which `this_process` is the JSON text runs; None if it ran on another machine."""
    try:
        values, here = json.loads(holder), this_process()
        if (values["host"], values["machine"]) != (here["host"], here["machine"]):
            return None
        os.kill(values["pid"], 0)
    except (ValueError, LookupError, TypeError, ProcessLookupError):  # half-written by a process that was killed
        return False
    except PermissionError:
        pass
    return _started(values["pid"]) == values["started"]


def _started(pid: int) -> str | None:
    """Returns the time at which a process started, which tells it from a later one with its number; "" if it ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def _content(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _modified(path: pathlib.Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _clock_of(folder: pathlib.Path) -> float:
    """Returns the time by the clock of a file system, which may differ from that of this machine."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        return os.stat(file.name).st_mtime


def _name(holder: str) -> str:
    try:
        values = json.loads(holder)
        return f"process {values['pid']} of {values['host']}"
    except (ValueError, LookupError, TypeError):
        return "another process"
