"""Atomic writes: a file is written under a temporary name, flushed to the disk, then renamed."""

import json
import os
import pathlib
from typing import Any

from ssljax.base.errors import UserError


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces the content of a file atomically: after a crash it has the old or the new content, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # `ssljax report` may write at the same time
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    move_whole(temporary, path)


def move_whole(source: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a file or folder within a file system, and flushes its content and its new name to the disk."""
    for path in [source, *source.rglob("*")]:
        flush(path)
    os.replace(source, target)
    flush(target.parent)


def flush(path: pathlib.Path) -> None:
    """Waits until the content of a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: pathlib.Path, line: str) -> None:
    """Adds one line to a file and flushes it to the disk."""
    with open(path, "a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the content is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); restore it or use a new workdir") from error
