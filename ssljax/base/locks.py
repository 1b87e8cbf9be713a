"""Locks between processes."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """A context that holds the lock file `path`; waits for it. The system releases the lock if the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
