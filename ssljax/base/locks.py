"""Locks between processes."""

import contextlib
import errno
import pathlib
from collections.abc import Iterator

import filelock


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
