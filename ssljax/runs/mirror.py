"""Workdirs in buckets: a folder of this machine, and a thread that keeps what is below an address equal to it.

Object stores cannot append or rename, and orbax writes to `gs://` directly, but to no other scheme. So a run writes
its files and checkpoints into a mirror, a folder of the cache, as into any workdir, and they are sent from there: one
way for every file system of fsspec, which is tested without a bucket. The bucket is the truth: a start takes its files,
and drops those of the mirror that it does not have.

A mark says that all files of a checkpoint are sent. It is written last; a checkpoint without it does not count.

The processes of a job share no disk: each has a mirror, into which orbax writes its own shards (see `Checkpoints`). The
leading process asks all for the shards of one step at a time, sends the other files of the run itself, and writes the
mark once every process has told the names of what it has sent. A start takes all files but shards; a process takes the
shards that it needs when a checkpoint is read.

    config.json, metrics.jsonl, ...   as in every workdir, written by the leading process
    checkpoints/STEP/...              the files of orbax, of all processes
    damaged-STEP/...                  a damaged checkpoint
    .complete/STEP.json               the mark of a checkpoint: names and sizes of its files
    .lease                            the process that holds the workdir
"""

import concurrent.futures
import contextlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import filelock
import jax

from ssljax import parallel
from ssljax.base import hashing
from ssljax.base.buckets import Bucket, BucketError
from ssljax.base.errors import UserError
from ssljax.base.files import write_whole
from ssljax.base.locks import leased_object
from ssljax.base.signals import Stopped
from ssljax.data.cache import default_root
from ssljax.train.checkpoint import is_shard

log = logging.getLogger(__name__)

INTERVAL = 10.0  # seconds between two looks for changed files; longer if sending takes longer than a tenth of it
ANSWER = 1.0  # seconds between two looks of a process for what the leading one asks for, and of that for answers
LAST = 20.0  # seconds for which a process that is told to stop alone waits for the others
PATIENCE = 600.0  # seconds for which a storage may fail in passing
_FRESH = 10.0  # seconds for which files that were taken from the bucket are not taken again
_LEASE = ".lease"
_MARK = re.compile(r"\.complete/(\d+)\.json")
_STREAMS = 8  # files that are sent at the same time

Files = dict[str, int]  # {name: bytes}


class Mirror:
    """The mirror of the workdir at an address.

    Args:
        address: such as gs://bucket/run.
        root: folder of the mirrors of this machine.

    Attributes:
        address: the address.
        folder: the folder that mirrors it. Its name is the last part of the address.
        is_sending: True while a thread sends changed files.
    """

    def __init__(self, address: str, root: pathlib.Path):
        self.bucket = Bucket(address, "--workdir")
        self.address = self.bucket.address
        self._place, self._own = _reserved(root, hashing.digest(self.address))
        self.folder = self._place / self.address.rpartition("/")[2]
        self.folder.mkdir(exist_ok=True)
        self.is_sending = False
        self._sent: dict[str, tuple[int, int]] = {}  # {name: (time, size)} of files that the bucket has, too
        self._saved: dict[int, Files] = {}  # {step: files} of checkpoints that are complete in the bucket
        self._parts: dict[int, Files] = {}  # {step: files} of other checkpoints, which this process has sent
        self._board, self._asked = parallel.Board(""), 0  # questions of the leading process, and their number so far
        self._released, self._deadline = threading.Event(), math.inf  # ends of the wait for other processes
        self._taken = -_FRESH
        self._error: UserError | None = None
        self._busy = threading.Lock()  # for files
        self._checkpoints_busy = threading.Lock()  # an evaluation does not wait until a checkpoint is sent

    # From the bucket

    def take(self) -> None:
        """Makes the files of the mirror, without checkpoints, those of the bucket.

        Raises:
            BucketError: the bucket cannot be read.
        """
        if self.is_sending or time.monotonic() - self._taken < _FRESH:
            return
        with self._busy:
            there = {name for name in self.bucket.sizes() if _is_file_of_run(name)}
            for name, path in self._files():
                if name not in there:
                    path.unlink(missing_ok=True)
            self._all(lambda name: self.bucket.download(name, self.folder / name), there)
            self._sent = {name: _stamp(path) for name, path in self._files() if name in there}
            self._taken = time.monotonic()

    def take_file(self, name: str) -> None:
        """Takes one file again, which another process may have changed, unless it has lines that are not sent yet."""
        path = self.folder / name
        with self._busy:
            if path.exists() and self._sent.get(name) != _stamp(path):
                return
            content = self.bucket.read(name)
            if content is not None:
                write_whole(path, content)
                self._sent[name] = _stamp(path)

    def take_checkpoints(self, step: int | None = None) -> None:
        """Makes the checkpoints of the mirror those that are complete in the bucket, without shards.

        Args:
            step: the only checkpoint to take; None: all.

        Raises:
            UserError: there is no checkpoint of `step`, or the bucket cannot be read.
        """
        complete = self._complete()
        if step is not None and step not in complete:
            raise UserError(f"{self.address}: no checkpoint of step {step} (there are: {sorted(complete)})")
        wanted = complete if step is None else {step}
        self._take_checkpoints(wanted)
        self._keep(wanted, set(self._saved))

    def _take_checkpoints(self, wanted: set[int]) -> None:
        with self._checkpoints_busy:
            self._saved, self._parts = {}, {}
            for other in self._checkpoints().keys() - wanted:
                shutil.rmtree(self.folder / "checkpoints" / str(other))
            for one in sorted(wanted):
                self._take_checkpoint(one)

    def _take_together(self) -> None:
        """Takes the checkpoints in all processes of a job, those that are whole for each of them."""
        complete = parallel.lead(self._complete)
        parallel.together(lambda: self._take_checkpoints(complete))
        parallel.together(lambda: self._board.write("whole", set(self._saved)))
        self._keep(complete, set.intersection(*self._board.all("whole") or [set()]))

    def _keep(self, wanted: set[int], whole: set[int]) -> None:
        """Removes checkpoints from the mirror that are not whole.

        Raises:
            UserError: none is; a run would begin anew and replace what is there.
        """
        for step in self._saved.keys() - whole:
            shutil.rmtree(self.folder / "checkpoints" / str(step))
            del self._saved[step]
        if wanted and not whole:
            error = UserError(
                f"{self.address}: none of the checkpoints {sorted(wanted)} is whole; restore a copy of their "
                "files, or train at a new address"
            )
            raise parallel.agreed(error)

    def _complete(self) -> set[int]:
        """Returns the steps whose checkpoints are whole in the bucket."""
        return {int(match[1]) for name in self.bucket.sizes(".complete") if (match := _MARK.fullmatch(name))}

    def _take_checkpoint(self, step: int) -> None:
        target, have = self.folder / "checkpoints" / str(step), self._place / "have" / str(step)
        mark = self.bucket.read(f".complete/{step}.json") or b""
        try:
            files: Files = dict(json.loads(mark)["files"])
            there = self.bucket.sizes(f"checkpoints/{step}")
            if any(there.get(f"checkpoints/{step}/{name}") != size for name, size in files.items()):
                raise ValueError("sizes of files are not those of its mark")
            if not (target.is_dir() and have.is_file() and have.read_bytes() == mark):
                new = self._place / "take" / str(step)
                for old in (new, target):
                    shutil.rmtree(old, ignore_errors=True)
                new.mkdir(parents=True)
                self._download(step, [name for name in files if not is_shard(name)], new)
                target.parent.mkdir(parents=True, exist_ok=True)
                new.rename(target)
                self._note(step, mark)
        except (BucketError, ValueError, LookupError, TypeError) as error:
            if isinstance(error, BucketError) and not error.missing:
                raise
            shutil.rmtree(target, ignore_errors=True)
            log.warning("checkpoint %d in %s is not whole and is skipped: %s", step, self.address, error)
        else:
            self._saved[step] = files

    def fetch(self, step: int, is_needed: Callable[[str], bool]) -> None:
        """Takes the files of a checkpoint that this process needs and does not have yet.

        Args:
            step: a checkpoint that was taken.
            is_needed: function of the name of a file in the checkpoint.

        Raises:
            LookupError: a file is missing.
            BucketError: the bucket cannot be read.
        """
        target = self.folder / "checkpoints" / str(step)
        with self._checkpoints_busy:
            have, files = _sizes(target), self._saved.get(step, {})
            names = [name for name, size in files.items() if have.get(name) != size and is_needed(name)]
            try:
                self._download(step, names, target)
            except BucketError as error:
                raise LookupError(str(error)) if error.missing else error from error

    def set_aside(self, step: int) -> None:
        """Keeps a damaged checkpoint under another name in the bucket, and removes it from the mirror.

        Raises:
            BucketError: the bucket cannot be written.
        """
        with self._checkpoints_busy:
            self._saved.pop(step, None)
            self._parts.pop(step, None)
            shutil.rmtree(self.folder / "checkpoints" / str(step), ignore_errors=True)
            if not parallel.leads():
                return
            aside, names = f"damaged-{step}", self.bucket.sizes(f"checkpoints/{step}")
            while self.bucket.sizes(aside):
                aside += "-again"
            self._all(lambda name: self.bucket.copy(name, name.replace(f"checkpoints/{step}", aside, 1)), names)
            self.bucket.remove([f".complete/{step}.json", *names])
            log.warning("checkpoint %d is now %s/%s", step, self.address, aside)

    def _download(self, step: int, names: list[str], folder: pathlib.Path) -> None:
        if names:
            log.info("%s: taking %d files of the checkpoint of step %d", self.address, len(names), step)
        self._all(lambda name: self.bucket.download(f"checkpoints/{step}/{name}", folder / name), names)

    def _note(self, step: int, mark: bytes) -> None:
        """Keeps the mark of a checkpoint whose files in the mirror are those of the bucket."""
        have = self._place / "have" / str(step)
        have.parent.mkdir(exist_ok=True)
        have.write_bytes(mark)

    # To the bucket

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the address for this job, takes its files, and removes what a killed job has left half-sent.

        Raises:
            BlockingIOError: another job holds it.
            BucketError: the bucket cannot be written.
        """
        with leased_object(self.bucket, _LEASE):
            self._taken = -_FRESH
            self.take()
            complete = {str(step) for step in self._complete()}
            self.bucket.remove(n for n in self.bucket.sizes("checkpoints") if n.split("/")[1] not in complete)
            yield

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Takes all checkpoints, then sends what changes in the background, and the rest at the end.

        All processes of a job enter it, after the leading one holds the address.

        Raises:
            UserError: something could not be sent, or taken.
        """
        self._board, self._asked = parallel.Board(parallel.lead(lambda: uuid.uuid4().hex)), 0
        self._take_together()
        self._error = None  # of an earlier run of this process
        self._deadline, ended = math.inf, threading.Event()
        self._released.clear()
        thread = threading.Thread(target=self._work_until, args=(ended,), name="bucket", daemon=True)
        self.is_sending = True
        thread.start()
        try:
            yield
        except BaseException as error:
            self._end_after(error, ended, thread)
            raise
        else:
            self._finish(ended, thread)
        finally:
            self.is_sending = False

    def _end_after(self, error: BaseException, ended: threading.Event, thread: threading.Thread) -> None:
        """Sends the rest after an error, as far as other processes of the job answer."""
        alone = jax.process_count() > 1 and not getattr(error, "of_all", False)
        if isinstance(error, Stopped):  # it says that the last step is saved
            self._deadline = time.monotonic() + LAST if alone else math.inf
            self._finish(ended, thread)
            return
        with contextlib.suppress(UserError):  # the first error is reported
            if not alone:
                self._finish(ended, thread)
                return
            self._deadline = 0.0
            ended.set()
            thread.join()
            if parallel.leads():
                self.send_files()

    def _finish(self, ended: threading.Event, thread: threading.Thread) -> None:
        """Sends the rest; other processes answer until the leading one has asked for it."""
        leads = parallel.leads()
        has_part = self._checkpoints().keys() - self._saved.keys()
        while not leads and (has_part or self._deadline == math.inf) and time.monotonic() < self._deadline:
            if self._released.wait(ANSWER):
                break
            self.check()
        ended.set()
        thread.join()
        if leads:
            try:
                self.send()
            finally:
                self._ask(None)
            for step in self._checkpoints().keys() - self._saved.keys():
                log.warning("%s: the checkpoint of step %d is not sent, since a process has left", self.address, step)

    def check(self) -> None:
        """Raises the error of the thread, if it cannot send."""
        if self._error is not None:
            raise self._error

    def _work_until(self, ended: threading.Event) -> None:
        leads = parallel.leads()
        pause, succeeded = INTERVAL if leads else ANSWER, time.monotonic()
        while not ended.wait(pause):
            began = time.monotonic()
            try:
                (self.send if leads else self._answer)()
                succeeded, self._error = time.monotonic(), None
            except BucketError as error:
                if error.passing and time.monotonic() - succeeded < PATIENCE:
                    log.warning("%s; it is tried again", error)
                else:
                    self._error = error
            except parallel.LostProcess as error:
                self._error = error
            except Exception as error:  # it would end the thread, and nothing would be sent
                self._error = UserError(f"--workdir: cannot send {self.folder} to {self.address}: {error}")
            if leads:
                pause = max(INTERVAL, min(10 * (time.monotonic() - began), PATIENCE / 2))

    def _ask(self, step: int | None) -> int:
        """Asks all processes to send their shards of a step; None: there is nothing more. Returns the question."""
        self._board.write(f"ask-{self._asked}", step)
        self._asked += 1
        return self._asked - 1

    def _answer(self) -> None:
        """Sends what the leading process has asked for."""
        while not self._released.is_set() and (question := self._board.read(f"ask-{self._asked}")):
            if question[0] is None:
                self._released.set()
                return
            part = self._send_part(question[0])
            if part is None and question[0] > max(self._checkpoints(), default=-1):
                return  # it is being written
            self._parts = {question[0]: part or {}}
            self._board.write(f"sent-{self._asked}", part)
            self._asked += 1

    def send(self) -> None:
        """Sends all changed files and all new checkpoints; those that the run has removed are removed.

        Raises:
            BucketError: the bucket cannot be written.
        """
        with self._checkpoints_busy:
            found = self._checkpoints()  # before the files, which have the numbers of these steps already
            self.send_files()
            for step in sorted(found, reverse=True):
                self._send_checkpoint(step, found[step])
            if found:
                self._forget(found)

    def send_files(self) -> None:
        """Sends all changed files, without checkpoints.

        Raises:
            BucketError: the bucket cannot be written.
        """
        with self._busy:
            self._send_files()

    def _send_files(self) -> None:
        stamps = {}
        for name, path in self._files():
            with contextlib.suppress(FileNotFoundError):
                stamps[name] = _stamp(path)
        changed = [name for name, stamp in stamps.items() if self._sent.get(name) != stamp]

        def upload(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):  # just replaced: the next call sends it
                self.bucket.upload(self.folder / name, name)
                self._sent[name] = stamps[name]

        self._all(upload, changed)
        gone = [name for name in self._sent if name not in stamps and not (self.folder / name).exists()]
        self.bucket.remove(gone)
        for name in gone:
            del self._sent[name]

    def _send_checkpoint(self, step: int, files: Files) -> None:
        saved = self._saved.get(step)
        if saved is not None and files.items() <= saved.items():
            return
        # To a checkpoint that is complete, this process has added metrics.
        parts = [self._send_part(step)] if saved is not None else self._send_parts(step)
        if None in parts:
            return
        files = {**(saved or {}), **{name: size for part in parts for name, size in (part or {}).items()}}
        mark = json.dumps({"nonce": uuid.uuid4().hex, "files": files}).encode()
        self.bucket.write(f".complete/{step}.json", mark)
        self._saved[step] = files
        if jax.process_count() == 1:
            self._note(step, mark)

    def _send_parts(self, step: int) -> list[Files | None]:
        """Sends the files of all processes; a part is None if a process has removed the checkpoint."""
        question = self._ask(step)
        self._board.write(f"sent-{question}", self._send_part(step))
        while (parts := self._board.all(f"sent-{question}")) is None:
            if time.monotonic() > self._deadline:
                return [None]
            time.sleep(ANSWER)
        for topic in ("ask", "sent"):
            self._board.remove(f"{topic}-{question}")
        return parts

    def _send_part(self, step: int) -> Files | None:
        """Sends the files of a checkpoint that this process has written; returns them, or None if the run has none."""
        frozen = self._place / "send" / str(step)
        shutil.rmtree(frozen, ignore_errors=True)
        try:  # the run may remove the checkpoint while it is sent
            shutil.copytree(self.folder / "checkpoints" / str(step), frozen, copy_function=_link)
        except (shutil.Error, FileNotFoundError):
            return None
        found = {name: size for name, size in _sizes(frozen).items() if parallel.leads() or _is_part(name)}
        sent = {**self._saved.get(step, {}), **self._parts.get(step, {})}
        new = [name for name, size in found.items() if sent.get(name) != size]
        self._all(lambda name: self.bucket.upload(frozen / name, f"checkpoints/{step}/{name}"), new)
        shutil.rmtree(frozen, ignore_errors=True)
        self._parts[step] = found
        return found

    def _forget(self, found: dict[int, Files]) -> None:
        """Removes checkpoints that the run has removed, once those that it keeps are sent."""
        if not found.keys() <= self._saved.keys():
            return
        for step in (self._saved.keys() | self._parts.keys()) - found.keys():
            self.bucket.remove([f".complete/{step}.json"])
            self.bucket.remove(self.bucket.sizes(f"checkpoints/{step}"))
            self._saved.pop(step, None)
            self._parts.pop(step, None)

    # In the mirror

    def _files(self) -> Iterator[tuple[str, pathlib.Path]]:
        for name, path in _walk(self.folder):
            if _is_file_of_run(name):
                yield name, path

    def _checkpoints(self) -> dict[int, Files]:
        folder, found = self.folder / "checkpoints", {}
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name.isdigit():
                found[int(path.name)] = _sizes(path)
        return found

    @staticmethod
    def _all(call: Callable[[str], None], names: Iterable[str]) -> None:
        with concurrent.futures.ThreadPoolExecutor(_STREAMS) as pool:
            for _ in pool.map(call, names):
                pass


_OPEN: dict[tuple[str, pathlib.Path], Mirror] = {}


def opened(address: str) -> Mirror:
    """Returns the mirror of an address in this process, with the present files of the bucket.

    Raises:
        UserError: an unknown scheme, a missing library, or a bucket that cannot be read.
    """
    root = default_root() / "workdirs"
    key = (address.rstrip("/"), root)
    if key not in _OPEN:
        _OPEN[key] = Mirror(address, root)
    _OPEN[key].take()
    return _OPEN[key]


def _reserved(root: pathlib.Path, name: str) -> tuple[pathlib.Path, Any]:
    """Returns a folder that no other process of this machine uses, and the lock that says so until this one ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in range(1000):
            place, lock = root / f"{name}-{number}", filelock.FileLock(root / f"{name}-{number}.lock", timeout=0)
            with contextlib.suppress(filelock.Timeout):
                lock.acquire()
                place.mkdir(exist_ok=True)
                return place, lock
    except OSError as error:
        raise UserError(f"SSLJAX_CACHE: cannot write {root} ({error.strerror}); name a folder of this disk") from error
    raise UserError(f"SSLJAX_CACHE: {root} has a thousand mirrors of one workdir in use")


def _is_file_of_run(name: str) -> bool:
    """Returns False for checkpoints and their marks, locks and files that are being written."""
    first = name.partition("/")[0]
    hidden = first.startswith(".") and first != ".trackers.json"
    saved = first == "checkpoints" or first.startswith("damaged-")
    return not (hidden or saved or name.endswith((".tmp", ".lock")))


def _is_part(name: str) -> bool:
    """Returns True for a file of a checkpoint that belongs to one process: its shards, and metadata of its own."""
    return name.startswith("state/") and name.count("/") > 1


def _walk(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = pathlib.Path(place) / name
            yield path.relative_to(folder).as_posix(), path


def _sizes(folder: pathlib.Path) -> Files:
    found = {}
    for name, path in _walk(folder):
        with contextlib.suppress(FileNotFoundError):
            found[name] = path.stat().st_size
    return found


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
