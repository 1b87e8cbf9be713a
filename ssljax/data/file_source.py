"""The base class of sources that read files: patterns of paths, fingerprints, errors that name the file."""

import abc
import contextlib
import dataclasses
import gzip
import pathlib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

from ssljax.base.errors import UserError, one_line
from ssljax.data.content import digest_files
from ssljax.data.paths import is_pattern, matches
from ssljax.data.sources import Table, unknown_split
from ssljax.data.splits import Split
from ssljax.data.storage import is_remote, state_of


class FileSource(abc.ABC):
    """Rows that are read from the files of a pattern; `{split}` in the pattern stands for the name of a split.

    A subclass sets `kind` and implements `read`.

    Attributes:
        kind: scheme of the URI, for messages.
        single: True if a split is one file or folder.
        folders: True if the pattern names folders.
        location: the pattern of the files.
    """

    kind: ClassVar[str]
    single: bool = False
    folders: bool = False

    def __init__(self, location: str):
        self.location = location

    @abc.abstractmethod
    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        """Returns the table of a split; `table` adds the names of the splits.

        Args:
            paths: the paths that match the pattern for this split, sorted.
            split: the split, for sources that slice it themselves.
        """

    @property
    def form(self) -> Any:
        """A JSON value that states how the files are read: one file has other rows as `csv:` than as `text:`."""
        return [self.kind]

    def files(self, split: Split) -> list[pathlib.Path]:
        """Returns the files that the table of a split is made of."""
        return self._find(split)[0]

    def fingerprint(self, split: Split) -> Any:
        """Returns the form, and paths, sizes and modification times of the files of a split."""
        return [self.form, *stamp(self.files(split))]

    def content(self, split: Split) -> Any:
        """Returns a digest of the content of the files of a split, wherever they lie."""
        return digest_files([("", path) for path in self.files(split)])

    def table(self, split: Split) -> Table:
        """Returns the table of a split.

        Raises:
            UserError: no file, several files for a single one, an unknown split, or a damaged file.
        """
        paths, splits = self._find(split)
        return dataclasses.replace(self.read(paths, split), splits=splits)

    def _find(self, split: Split) -> tuple[list[pathlib.Path], tuple[str, ...] | None]:
        paths, splits = find_files(self.location, split, self.folders)
        if self.single and len(paths) > 1:
            things = "folders" if self.folders else "files"
            raise UserError(
                f"data.source: {self.kind}:{self.location} matches {len(paths)} {things}, must match one "
                f"({paths[0]}, ...)"
            )
        return paths, splits


def find_files(pattern: str, split: Split, folders: bool = False) -> tuple[list[pathlib.Path], tuple[str, ...] | None]:
    """Finds the files of a split.

    Args:
        pattern: a path, in which `{split}` stands for the name of a split; see `paths.matches`.
        split: the split.
        folders: True: wildcards and `{split}` match folders only; False: files only.

    Returns:
        The sorted paths, and the names of all splits that exist (None if the pattern has no `{split}`).

    Raises:
        UserError: no file matches, or the split does not exist.
    """
    found = matches(pattern)
    if is_pattern(pattern):
        found = [(path, name) for path, name in found if path.is_dir() == folders]
    names = None
    if "{split}" in pattern:
        names = tuple(sorted({name for _, name in found if name is not None}))
        if names and split.name not in names:
            raise unknown_split(split.name, names, pattern)
        found = [(path, name) for path, name in found if name == split.name]
    if not found:
        chosen = pattern.replace("{split}", split.name)
        problem = "matches no " + ("folder" if folders else "file") if is_pattern(chosen) else "does not exist"
        raise UserError(f"data.source: {chosen} {problem}")
    return [path for path, _ in found], names


def stamp(paths: list[pathlib.Path]) -> list[list[Any]]:
    """Returns path, size and modification time of files, which change when their content does.

    Raises:
        UserError: a file cannot be read.
    """
    stamps = []
    for path in paths:
        with reading(path, "a file"):
            stamps.append(state_of(path))
    return stamps


def read_bytes(path: pathlib.Path) -> bytes:
    """Returns the content of a file, decompressed if its name ends in .gz."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@contextlib.contextmanager
def reading(path: pathlib.Path, form: str) -> Iterator[None]:
    """Turns the errors that reading `path` may raise into a UserError that names the file.

    Args:
        path: the file that is read inside the context.
        form: the expected content, with an article: "an npz file".

    Raises:
        UserError: the file cannot be read, is damaged, or has another form.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"data.source: cannot read {path} ({error.strerror})") from error
        if not isinstance(error, _OF_CONTENT):
            if is_remote(path):  # the libraries of file systems raise types of their own
                raise UserError(f"data.source: cannot read {path} ({one_line(str(error))})") from error
            raise
        raise UserError(f"data.source: {path} is damaged or not {form} ({error})") from error


_OF_CONTENT = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
