"""Agreement between the processes of a job, through the service that connects them.

Nothing here runs on a device, except votes. All processes call these functions in the same order, from one thread. Only
a `Board` may be used from any thread.
"""

import collections
import contextlib
import itertools
import os
import pickle
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssljax.base.errors import UserError, one_line

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_LONGEST = 7 * 24 * 3600 * 1000  # milliseconds; a process that died ends the wait much earlier
_POLL_SECONDS = 1.0
_FAILED = "ssljax/failed"
# Messages of a communication that failed, of gloo, NCCL, and the service of jax.
_BROKEN = re.compile(r"gloo|nccl|connection (closed|reset|refused)|socket closed|coordination|heartbeat", re.IGNORECASE)
_numbers = itertools.count()


class LostProcess(UserError):
    """Another process of the job cannot be reached. It is no mistake of the user, so a scheduler may run it again."""

    exit_code = 1


def leads() -> bool:
    """Returns True in the leading process of a job, which writes its files, and in a process without a job."""
    return jax.process_index() == 0


def lead(function: Callable[[], T]) -> T:
    """Calls a function in the leading process and returns its result in every process.

    Raises:
        Exception: the error of the function, in every process.
    """
    if jax.process_count() == 1:
        return function()
    key, client = f"ssljax/lead/{next(_numbers)}", _client()
    if leads():
        outcome = _outcome(function)
        client.key_value_set_bytes(key, pickle.dumps(outcome))
    else:
        outcome = pickle.loads(client.blocking_key_value_get_bytes(key, _LONGEST))
    return _result(outcome)


def together(function: Callable[[], T]) -> T:
    """Calls a function in every process and returns its own result in each.

    Raises:
        Exception: if the function fails anywhere, the error of the first process in which it failed, in every process.
    """
    if jax.process_count() == 1:
        return function()
    key, client = f"ssljax/together/{next(_numbers)}", _client()
    outcome = _outcome(function)
    if outcome[1] is not None:
        client.key_value_set_bytes(f"{key}/{jax.process_index():06d}", pickle.dumps(outcome))
    client.wait_at_barrier(key, _LONGEST)
    failed = sorted(client.key_value_dir_get_bytes(key))
    return _result(pickle.loads(failed[0][1]) if failed else outcome)


def leader_first(function: Callable[[], T]) -> T:
    """Calls a function in the leading process, then in the others, which find the files that it has made.

    Raises:
        Exception: as `together`.
    """
    made: list[T] = []
    lead(lambda: made.append(function()))
    return together(lambda: made[0] if made else function())


def check_equal(value: str, name: str) -> None:
    """Checks that all processes have the value of the leading one.

    Raises:
        UserError: a process has another value; `name` says of what.
    """
    expected = lead(lambda: value)

    def compare() -> None:
        if value != expected:
            here = f"process {jax.process_index()} ({socket.gethostname()})"
            raise UserError(f"{name} differ between the processes: {here} sees others than process 0")

    together(compare)


def agreed(error: E) -> E:
    """Marks an error that every process of the job raises; only the leading one has to report it."""
    error.of_all = True  # type: ignore[attr-defined]
    return error


class Board:
    """Notes of the processes of a job on topics, for work in the background that has no common order.

    Args:
        name: name of the board, the same in all processes and another one for each board.
    """

    def __init__(self, name: str):
        self._place, self._notes = f"ssljax/board/{name}", dict[str, Any]()
        self._client = _client() if jax.process_count() > 1 else None

    def write(self, topic: str, note: Any) -> None:
        """Leaves the note of this process on a topic, in the place of an earlier one."""
        if self._client is None:
            self._notes[topic] = note
        else:
            content = zlib.compress(pickle.dumps(note))
            self._client.key_value_set_bytes(self._key(topic, jax.process_index()), content, allow_overwrite=True)

    def read(self, topic: str, process: int = 0) -> tuple[Any] | None:
        """Returns the note of a process in a tuple; None: it has left none yet."""
        if self._client is None:
            return (self._notes[topic],) if topic in self._notes else None
        try:
            return (pickle.loads(zlib.decompress(self._client.key_value_try_get_bytes(self._key(topic, process)))),)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise LostProcess(f"a process of this job cannot be reached ({one_line(str(error))[:200]})") from error

    def found(self, topic: str) -> dict[int, Any]:
        """Returns the notes on a topic by the number of their process, in one request."""
        if self._client is None:
            return {0: self._notes[topic]} if topic in self._notes else {}
        try:
            found = self._client.key_value_dir_get_bytes(f"{self._place}/{topic}/")
        except jax.errors.JaxRuntimeError as error:
            raise LostProcess(f"a process of this job cannot be reached ({one_line(str(error))[:200]})") from error
        return {int(key.rpartition("/")[2]): pickle.loads(zlib.decompress(note)) for key, note in found}

    def all(self, topic: str) -> list[Any] | None:
        """Returns the notes of all processes on a topic; None as long as one is missing."""
        notes: list[Any] = []
        for process in range(jax.process_count()):
            note = self.read(topic, process)
            if note is None:
                return None
            notes.extend(note)
        return notes

    def remove(self, topic: str) -> None:
        """Removes the notes of all processes on a topic."""
        self._notes.pop(topic, None)
        if self._client is not None:
            self._client.key_value_delete(f"{self._place}/{topic}/")

    def _key(self, topic: str, process: int) -> str:
        return f"{self._place}/{topic}/{process}"


class Votes:
    """Decisions that all processes take at the same step, without waiting for the devices.

    A vote is a sum over all devices, dispatched like a step. Its outcome is read `behind` calls later.

    Args:
        mesh: the mesh; with one process, the outcome of a vote is the vote itself, at once.
        behind: number of calls after which an outcome is read.
    """

    def __init__(self, mesh: Mesh, behind: int):
        self._behind, self._alone = behind, jax.process_count() == 1
        self._cast: collections.deque[jax.Array] = collections.deque()
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._size = mesh.size
        self._sum = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, vote: bool) -> bool:
        """Casts a vote; returns True if any process voted True in an earlier call whose outcome is known."""
        if self._alone:
            return vote
        one = np.full(1, vote, np.int32)
        votes = jax.make_array_from_callback((self._size,), self._sharding, lambda _: one)
        self._cast.append(self._sum(votes))
        return len(self._cast) > self._behind and bool(self._cast.popleft())


@contextlib.contextmanager
def joint_end() -> Iterator[None]:
    """A context whose error in one process ends the others within seconds, each with one line.

    Without it, the others would wait in a communication for a process that has left.
    """
    if jax.process_count() == 1:
        yield
        return
    ended, told = threading.Event(), threading.Event()
    threading.Thread(target=_watch, args=(ended, told), name="joint end", daemon=True).start()
    try:
        yield
        together(lambda: None)  # the leading process may still write its report; jax waits for it for 5 minutes only
    except jax.errors.JaxRuntimeError as error:
        if not _BROKEN.search(str(error)):
            _report(error)
            raise
        if told.wait(2 * _POLL_SECONDS):  # the process that left has said why: `_watch` repeats it and ends this one
            time.sleep(60)
        lost = LostProcess(
            f"a process of this job has died or cannot be reached ({one_line(str(error))[:200]}); the same command "
            f"continues the run"
        )
        _report(lost)  # others may wait for the dead process without an error
        raise lost from error
    except BaseException as error:
        if not getattr(error, "of_all", False):
            _report(error)
        raise
    finally:
        ended.set()


def _watch(ended: threading.Event, told: threading.Event) -> None:
    client = _client()
    while not ended.wait(_POLL_SECONDS):
        try:
            found = client.key_value_dir_get_bytes(_FAILED)
        except jax.errors.JaxRuntimeError:  # the service has gone, with the leading process
            return
        if found and not ended.is_set():
            process, code, line = pickle.loads(found[0][1])
            if process != jax.process_index():
                told.set()
                print(f"stopped, since process {process} has left: {line}", file=sys.stderr, flush=True)
                if leads():  # the others lose the service with this process
                    time.sleep(4 * _POLL_SECONDS)
                os._exit(code)


def _report(error: BaseException) -> None:
    """Tells the other processes that this one leaves, and gives them the time to read it."""
    code = getattr(error, "exit_code", 2 if isinstance(error, UserError | OSError) else 1)
    line = one_line(f"{error or type(error).__name__} ({socket.gethostname()})")
    with contextlib.suppress(Exception):
        _client().key_value_set_bytes(f"{_FAILED}/0", pickle.dumps((jax.process_index(), code, line)))
        time.sleep(2 * _POLL_SECONDS)


def _outcome(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error if _can_be_sent(error) else RuntimeError(f"{type(error).__name__}: {error}")


def _can_be_sent(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error class whose constructor takes other arguments
        return False
    return True


def _result(outcome: tuple[Any, Exception | None]) -> Any:
    value, error = outcome
    if error is not None:
        raise agreed(error)
    return value


def _client() -> Any:
    from jax._src import distributed  # jax has no public access to the key-value store

    return distributed.global_state.client
