"""Files of this machine and of remote storage (`gs://`, `s3://`, ...), with the methods of `pathlib.Path`.

A remote path is one of the library `universal_pathlib`, which reads through `fsspec`. The library of a scheme, such as
`gcsfs` or `s3fs`, is installed by the user and finds the credentials itself.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from ssljax.base.errors import UserError, one_line

_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*)://([^/]*)/?")


class Entry(NamedTuple):
    """An entry of a folder.

    Attributes:
        name: the name within the folder.
        is_folder: True for a folder, or a link to one.
        is_link: True for a link.
    """

    name: str
    is_folder: bool
    is_link: bool = False


def path_of(text: str) -> pathlib.Path:
    """Returns the path of a file or folder; for an address, a path of `universal_pathlib`.

    Raises:
        UserError: an unknown scheme, or one whose library is not installed.
    """
    if not _ADDRESS.match(text):
        return pathlib.Path(text)
    from upath import UPath

    try:
        path: Any = UPath(text)
        path.fs  # noqa: B018  (opens the file system)
    except ImportError as error:
        raise UserError(f"data.source: {text} needs another library ({one_line(str(error))})") from error
    except Exception as error:  # the libraries of file systems raise types of their own
        raise UserError(f"data.source: cannot open {text} ({one_line(str(error))})") from error
    return path


def root_and_parts(pattern: str) -> tuple[pathlib.Path, list[str]]:
    """Returns the path that a pattern begins at (of an address, its host or bucket), and the parts that follow."""
    address = _ADDRESS.match(pattern)
    if address and re.search(r"[*?\[{]", address[2]):
        raise UserError(f"data.source: {pattern}: the part before the first / of an address must be without wildcards")
    start = path_of(address[0]) if address else pathlib.Path("/" if pattern.startswith("/") else ".")
    rest = pattern[address.end() :] if address else pattern
    return start, [part for part in rest.split("/") if part not in ("", ".")]


def is_remote(path: pathlib.Path) -> bool:
    """Returns True for a path of remote storage."""
    return not isinstance(path, pathlib.Path)


def exists(path: pathlib.Path) -> bool:
    """Returns True if there is a file, a folder or a link of this name."""
    return path.exists() if is_remote(path) else os.path.lexists(path)


def real(path: pathlib.Path) -> str:
    """Returns the path without links."""
    return str(path) if is_remote(path) else os.path.realpath(path)


def entries(folder: pathlib.Path) -> list[Entry]:
    """Returns the entries of a folder, sorted by name.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        found = _remote_entries(folder) if is_remote(folder) else _local_entries(folder)
    except OSError as error:
        raise UserError(f"data.source: cannot read {folder} ({error.strerror or one_line(str(error))})") from error
    return sorted(found)


def _local_entries(folder: pathlib.Path) -> list[Entry]:
    with os.scandir(folder) as scanned:
        return [Entry(entry.name, _leads_to_folder(entry), entry.is_symlink()) for entry in scanned]


def _leads_to_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _remote_entries(folder: Any) -> list[Entry]:
    try:
        listed = folder.fs.ls(folder.path, detail=True)
    except OSError:
        raise
    except Exception as error:  # the libraries of file systems raise types of their own
        raise OSError(one_line(str(error))) from error
    paths = [(info["name"].rstrip("/"), info["type"] == "directory") for info in listed]
    own = folder.path.rstrip("/")  # some storages list a folder in itself
    return [Entry(path.rpartition("/")[2], is_folder) for path, is_folder in paths if path and path != own]


# Names under which storages tell the version of a file; `ukey` of fsspec leaves some of them out.
_VERSIONS = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "updated", "md5Hash", "Content-MD5", "Digest")


def state_of(path: Any) -> list[Any]:
    """Returns a JSON value that changes when the content of a file does.

    Raises:
        OSError: the file cannot be read.
    """
    if is_remote(path):
        info = path.fs.info(path.path)
        known = [str(info[name]) for name in _VERSIONS if name in info]
        return [str(path), info.get("size"), path.fs.ukey(path.path), *known]
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def read_ranges(ranges: Sequence[tuple[Any, int, int]]) -> list[bytes]:
    """Returns the bytes `start` to `stop` of files, for (path, start, stop) each. Remote ones are read at once.

    Raises:
        OSError: a file cannot be read.
    """
    if ranges and is_remote(ranges[0][0]):
        paths, starts, stops = zip(*((path.path, start, stop) for path, start, stop in ranges))
        found = ranges[0][0].fs.cat_ranges(list(paths), list(starts), list(stops), on_error="raise")
        for (path, start, stop), content in zip(ranges, found):
            if len(content) != stop - start:  # such as a server that does not know ranges and sends the whole file
                raise OSError(f"the storage sent {len(content)} bytes of {path} instead of {stop - start}")
        return found
    out = []
    for path, start, stop in ranges:
        with path.open("rb") as file:
            file.seek(start)
            out.append(file.read(stop - start))
    return out


@contextlib.contextmanager
def arrow_file(path: pathlib.Path) -> Iterator[str | IO[bytes]]:
    """Yields the argument for readers of Apache Arrow: the name of a local file, which they read fastest, or a file."""
    if not is_remote(path):
        yield str(path)
        return
    with path.open("rb") as file:
        yield file
