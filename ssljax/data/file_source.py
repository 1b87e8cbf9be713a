"""The base class of sources that read files: patterns of paths, fingerprints, errors that name the file."""

import abc
import contextlib
import dataclasses
import glob
import gzip
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

from ssljax.base.errors import UserError
from ssljax.data.sources import Table, unknown_split
from ssljax.data.splits import Split


class FileSource(abc.ABC):
    """Rows that are read from the files of a pattern; `{split}` in the pattern stands for the name of a split.

    A subclass sets `kind` and implements `read`.

    Attributes:
        kind: scheme of the URI, for messages.
        single: True if a split is one file.
        location: the pattern of the files.
    """

    kind: ClassVar[str]
    single: ClassVar[bool] = False

    def __init__(self, location: str):
        self.location = location

    @abc.abstractmethod
    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        """Returns the table of a split; `table` adds the names of the splits.

        Args:
            paths: the paths that match the pattern for this split, sorted.
            split: the split, for sources that slice it themselves.
        """

    def files(self, split: Split) -> list[pathlib.Path]:
        """Returns the files that the table of a split is made of."""
        return self._find(split)[0]

    def fingerprint(self, split: Split) -> Any:
        """Returns paths, sizes and modification times of the files of a split."""
        return stamp(self.files(split))

    def table(self, split: Split) -> Table:
        """Returns the table of a split.

        Raises:
            UserError: no file, several files for a single one, an unknown split, or a damaged file.
        """
        paths, splits = self._find(split)
        return dataclasses.replace(self.read(paths, split), splits=splits)

    def _find(self, split: Split) -> tuple[list[pathlib.Path], tuple[str, ...] | None]:
        paths, splits = find_files(self.location, split)
        if self.single and len(paths) > 1:
            raise UserError(
                f"data.source: {self.kind}:{self.location} matches {len(paths)} files, must match one ({paths[0]}, ...)"
            )
        return paths, splits


def find_files(pattern: str, split: Split) -> tuple[list[pathlib.Path], tuple[str, ...] | None]:
    """Finds the files of a split.

    Returns:
        The sorted paths, and the names of all splits that exist (None if the pattern has no `{split}`).

    Raises:
        UserError: no file matches, or the split does not exist.
    """
    names = _split_names(pattern) if "{split}" in pattern else None
    if names and split.name not in names:
        raise unknown_split(split.name, names, pattern)
    chosen = pattern.replace("{split}", split.name)
    paths = [pathlib.Path(p) for p in sorted(glob.glob(chosen, recursive=True))] or [pathlib.Path(chosen)]
    if not paths[0].exists():
        problem = "matches no file" if glob.has_magic(chosen) else "does not exist"
        raise UserError(f"data.source: {chosen} {problem}")
    return paths, names


def _split_names(pattern: str) -> tuple[str, ...]:
    """Returns the names that `{split}` stands for among the paths that exist, sorted."""
    expression = re.escape(pattern).replace(re.escape("{split}"), "(?P<split>[^/]*)", 1)
    expression = expression.replace(re.escape("{split}"), "(?P=split)").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    matches = (re.fullmatch(expression, path) for path in glob.glob(pattern.replace("{split}", "*")))
    return tuple(sorted({match["split"] for match in matches if match}))


def stamp(paths: list[pathlib.Path]) -> list[list[Any]]:
    """Returns path, size and modification time of files, which change when their content does."""
    return [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]


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
    except (OSError, EOFError, ValueError, KeyError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"data.source: cannot read {path} ({error.strerror})") from error
        raise UserError(f"data.source: {path} is damaged or not {form} ({error})") from error
