"""Atomic writes: a file is written under a temporary name, flushed to the disk, then renamed."""

import contextlib
import filecmp
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

from ssljax.base.errors import UserError


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces the content of a file atomically: after a crash it has the old or the new content, never a part."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary name to write to, and renames it to `path` afterwards; after an error it is removed."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # `ssljax report` may write at the same time
    try:
        yield temporary
        move_whole(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def reserve(path: pathlib.Path) -> None:
    """Reserves the space of a file with holes: a disk that fills up under a mapped file kills the process.

    Raises:
        OSError: the disk is full.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, _BLOCK):  # macOS: what is read, zeros in holes, is written back
            file.seek(start)
            block = file.read(_BLOCK)
            file.seek(start)
            file.write(block)


_BLOCK = 1 << 20


def move_whole(source: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a file or folder within a file system, and flushes its content and its new name to the disk."""
    for path in [source, *source.rglob("*")]:
        flush(path)
    os.replace(source, target)
    flush(target.parent)


def replace_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a folder to `target` within a file system; an older `target` is removed after it.

    A folder cannot be replaced in one operation. After a crash between the two renames, the older one is next to
    `target` under a name that ends in ".old", and the next call puts it back before it replaces it. A target with the
    same content is left alone.
    """
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        os.replace(old, target)
    shutil.rmtree(old, ignore_errors=True)
    if target.is_file():
        target.unlink()
    if target.exists():
        if _same_content(source, target):
            return
        os.replace(target, old)
    move_whole(source, target)
    shutil.rmtree(old, ignore_errors=True)


def _same_content(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Returns True if two folders have the same files with the same bytes."""
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (one, other)]
    if names[0] != names[1]:
        return False
    files = [name for name in names[0] if (one / name).is_file()]
    return all((other / name).is_file() and filecmp.cmp(one / name, other / name, shallow=False) for name in files)


def flush(path: pathlib.Path) -> None:
    """Waits until the content of a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: pathlib.Path, line: str) -> None:
    """Adds one line to a file and flushes it to the disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object of a JSON file.

    Raises:
        UserError: the content is not JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object but {type(content).__name__}")
    return content


def local_folder(path: str | os.PathLike, key: str) -> pathlib.Path:
    """Returns the path of a folder, in which `~` stands for the home directory.

    Args:
        path: the path that the user gave.
        key: option or config key, for messages.

    Raises:
        UserError: the path is empty, or an address such as gs://bucket/run.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise UserError(f"{key}: got {text!r}, must be the path of a folder")
    if scheme := re.match(r"[A-Za-z][\w+.-]+:/", text):
        raise UserError(f"{key}: got {text!r}; {scheme[0]}/ cannot be used, give a folder of this machine (or a mount)")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}: got {text!r} ({error})") from error
