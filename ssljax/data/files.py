"""Sources of files: plain text, lines of JSON, and images in folders."""

import array
import bisect
import contextlib
import functools
import gzip
import io
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.base.hashing import digest
from ssljax.data.cache import build_once, default_root
from ssljax.data.content import digest_files
from ssljax.data.file_source import FileSource, reading, stamp
from ssljax.data.notes import inform_once, say_once
from ssljax.data.paths import files_below, folders_in, matches
from ssljax.data.sources import DEFAULT_KEYS, FILE_NAME, Blobs, Column, OnDemand, Table
from ssljax.data.splits import Split
from ssljax.data.storage import is_remote, read_ranges


class TextFiles(FileSource):
    """`text:GLOB`: plain text, one document in a file, also compressed (.gz). Slices of a split count lines.

    Files are read in blocks, so that one may be larger than the memory.
    """

    kind = "text"

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        @functools.cache
        def counts() -> list[int]:
            return [_count_lines(text_blocks(path)) for path in paths]

        @functools.cache
        def documents() -> list[tuple[pathlib.Path, slice]]:
            return [(path, slice(None)) for path in paths] if split.whole else _sliced(paths, counts(), split)

        def blocks(row: int) -> Iterator[str]:
            path, lines = documents()[row]
            return text_blocks(path) if split.whole else _lines_of(text_blocks(path), lines)

        def get(name: str) -> Column:
            if name == FILE_NAME:
                return [path.name.removesuffix(".gz") for path, _ in documents()]
            return OnDemand(len(documents()), lambda row: "".join(blocks(row)), blocks=blocks)

        return Table(("text", FILE_NAME), get, lines=lambda: sum(counts()), ordered=len(paths) == 1)


_CHARACTERS = 1 << 23  # characters of a block of text


def text_blocks(path: pathlib.Path) -> Iterator[str]:
    """Yields the UTF-8 text of a file in blocks; the file is decompressed if its name ends in .gz.

    Raises:
        UserError: the file cannot be read, is damaged, or is not UTF-8.
    """
    opened = gzip.open if path.suffix == ".gz" else contextlib.nullcontext
    with reading(path, "UTF-8 text"), path.open("rb") as file, opened(file) as content:
        decoded = io.TextIOWrapper(content, "utf-8-sig", newline="")  # a byte order mark is no text
        while block := decoded.read(_CHARACTERS):
            yield block


def _line_parts(blocks: Iterator[str]) -> Iterator[tuple[list[str], bool]]:
    """Yields the lines of each block, with their ends; the last one is complete if the second value is True.

    A line may go on in the next block. The lines are those of `str.splitlines`.
    """
    held = ""
    for block in itertools.chain(blocks, [None]):
        text, held = held + (block or ""), ""
        if block is not None and text.endswith("\r"):  # perhaps the first half of a line end
            text, held = text[:-1], "\r"
        if parts := text.splitlines(keepends=True):
            yield parts, parts[-1].splitlines()[0] != parts[-1]


def _count_lines(blocks: Iterator[str]) -> int:
    count, complete = 0, True
    for parts, ended in _line_parts(blocks):
        count, complete = count + len(parts) - (not complete), ended
    return count


def _lines_of(blocks: Iterator[str], lines: slice) -> Iterator[str]:
    """Yields the lines `lines.start` to `lines.stop` of a text, in blocks."""
    line = 0
    for parts, ended in _line_parts(blocks):
        if kept := "".join(parts[max(lines.start - line, 0) : max(lines.stop - line, 0)]):
            yield kept
        line += len(parts) - (not ended)
        if line >= lines.stop:
            return


def _sliced(paths: list[pathlib.Path], counts: list[int], split: Split) -> list[tuple[pathlib.Path, slice]]:
    """Returns the documents that a slice of the lines of all documents overlaps, each with its lines in the slice."""
    ends = list(itertools.accumulate(counts))
    start, stop, _ = split.bounds(ends[-1]).indices(ends[-1])
    firsts = [0, *ends[:-1]]
    return [
        (path, slice(max(start - first, 0), stop - first))
        for path, first, end in zip(paths, firsts, ends)
        if max(start, first) < min(stop, end)
    ]


class JsonLines(FileSource):
    """`jsonl:GLOB`: one JSON object in a line, also compressed (.gz). Columns are the keys of the objects.

    A column that is used must be a key of every object.
    """

    kind = "jsonl"

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        files = [_Lines(path) for path in paths]
        ends = list(itertools.accumulate(len(file) for file in files))
        if not ends[-1]:
            raise UserError(f"data.split: jsonl:{self.location} [{split.name}] is empty, must have at least one line")

        def line(row: int) -> tuple[_Lines, int]:
            file = bisect.bisect_right(ends, row)
            return files[file], row - (ends[file - 1] if file else 0)

        def location(row: int) -> str:
            file, i = line(row)
            return f"{file.path}:{file.number(i)}"

        def parsed(row: int) -> dict[str, Any]:
            file, i = line(row)
            return _parse_object(file.text(i), functools.partial(location, row))

        def value(name: str, row: int) -> Any:
            found = parsed(row)
            if name not in found:
                raise UserError(f"data.source: {location(row)}: no key {name!r}{nearest(name, found)}")
            return found[name]

        # All default keys count, so that a label which some rows lack is not lost without a word.
        names = dict.fromkeys(
            [*parsed(0), *(name for name in DEFAULT_KEYS if any(name in file.keys for file in files))]
        )
        return Table(
            tuple(names),
            lambda name: OnDemand(ends[-1], functools.partial(value, name)),
            location=location,
            ordered=len(paths) == 1,
        )


class _Lines:
    """The lines of a text file that are not blank, read on demand. In memory are only the places where they start.

    A compressed file (.gz) is decompressed once, into the folder of caches.

    Attributes:
        path: the file.
        keys: the default keys that a line has.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self._block = path, (0, b"")  # the start and the bytes that were read last
        starts, place, rest = array.array("q"), 0, {name: f'"{name}"'.encode() for name in DEFAULT_KEYS}
        with reading(path, "lines of JSON"):
            self._file = plain_file(path)
            with self._file.open("rb") as file:
                for line in file:
                    if line.strip():
                        starts.append(place)
                        for name in [name for name, spelled in rest.items() if spelled in line and _has(line, name)]:
                            del rest[name]
                    place += len(line)
        self._starts, self._size = starts, place
        self.keys = set(DEFAULT_KEYS) - rest.keys()

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, i: int) -> int:
        """Returns the number of a line in the file, from 1."""
        with self._file.open("rb") as file:
            return 1 + file.read(self._starts[i]).count(b"\n")

    def text(self, i: int) -> str:
        """Returns a line. Raises UserError if it is not UTF-8."""
        start = self._starts[i]
        end = self._starts[i + 1] if i + 1 < len(self._starts) else self._size
        first, content = self._block
        if not first <= start <= end <= first + len(content):
            with reading(self.path, "lines of JSON"):
                stop = min(max(end, start + _READ), self._size)
                first, content = self._block = start, read_ranges([(self._file, start, stop)])[0]
        try:
            text = content[start - first : end - first].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"data.source: {self.path}:{self.number(i)}: not UTF-8 ({error.reason})") from error
        return text if start else text.removeprefix("\ufeff")  # a byte order mark is no text


def _has(line: bytes, name: str) -> bool:
    """Returns True if a line is a JSON object with a key."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and name in value


_READ = 1 << 18  # bytes that are read at a time


def plain_file(path: pathlib.Path) -> pathlib.Path:
    """Returns a file without compression: the file itself, or what it decompresses to, in the folder of caches."""
    return _kept(path, "plain", gzip.open) if path.suffix == ".gz" else path


def local_file(path: pathlib.Path) -> pathlib.Path:
    """Returns a file of this machine: the file itself, or a copy of a remote one, in the folder of caches."""
    if not is_remote(path):
        return path
    inform_once(
        f"data.source: remote files are copied to {default_root()}, since their format is read from local files"
    )
    return _kept(path, "copy", contextlib.nullcontext)


def _kept(path: pathlib.Path, name: str, opened: Callable[[Any], Any]) -> pathlib.Path:
    """Returns a copy of a file in the folder of caches, made once from the content that `opened` gives."""

    def copy(folder: pathlib.Path) -> None:
        with path.open("rb") as file, opened(file) as content, (folder / "content").open("wb") as out:
            shutil.copyfileobj(content, out, 1 << 20)

    return build_once(default_root() / f"{name}-{digest(stamp([path]))}", copy) / "content"


def _parse_object(line: str, location: Callable[[], str]) -> dict[str, Any]:
    """Returns the JSON object of a line; raises UserError with its location if the line is anything else."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"data.source: {location()}: not valid JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise UserError(f"data.source: {location()}: lists or objects are nested too deeply") from error
    except ValueError as error:  # Python refuses to read integers of thousands of digits
        raise UserError(f"data.source: {location()}: a number has too many digits") from error
    if not isinstance(value, dict):
        raise UserError(f"data.source: {location()}: got a JSON {type(value).__name__}, must be an object with keys")
    return value


# fmt: off
IMAGE_SUFFIXES = {
    ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}
# fmt: on


AUDIO_SUFFIXES = {".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"}


class MediaFolder(FileSource):
    """Files of one kind in a folder. If all are in sub-folders of the folder, these are the classes.

    The column `file_name` has the path of a file within the folder, and `folder` the path of its folder.
    """

    things: str  # "images", "sounds"
    column: str  # name of the column of the files
    suffixes: set[str]
    single = True
    folders = True

    def files(self, split: Split) -> list[pathlib.Path]:
        (folder,) = super().files(split)
        return self._below(folder)

    def content(self, split: Split) -> Any:
        (folder,) = super().files(split)
        return digest_files([(p.relative_to(folder).as_posix(), p) for p in self._below(folder)])

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        (folder,) = paths
        files = self._below(folder)
        names = [path.relative_to(folder) for path in files]
        labels, classes, depths = None, None, {len(name.parts) for name in names}
        if depths == {2}:
            classes = self._classes(folder)
            numbers = {name: number for number, name in enumerate(classes)}
            labels = np.array([numbers[name.parts[0]] for name in names], np.int32)
            inform_once(f"data.source: the {len(classes)} sub-folders of {self.kind}:{folder} are the classes")
        elif depths != {1}:
            say_once(
                f"data.source: {self.kind}:{folder} has {self.things} in folders of several levels, so they have no "
                f'labels; data.keys={{"{self.column}": "{self.column}", "label": "folder"}} makes each folder a class'
            )
        return _of_files(self.column, files, names, labels, classes)

    def _classes(self, folder: pathlib.Path) -> tuple[str, ...]:
        """Returns the sub-folders of all splits together, so that a label has one meaning in every split."""
        folders = {folder}
        if "{split}" in self.location:
            folders |= {path for path, _ in matches(self.location) if path.is_dir()}
        below = [sub for parent in folders for sub in folders_in(parent)]
        names = tuple(sorted({sub.name for sub in below}))
        filled = {sub.name for sub in below if any(self._reads(path) for path in files_below(sub))}
        for name in names:
            if name not in filled:
                say_once(
                    f"data.source: the class folder {name!r} of {self.kind}:{self.location} has no {self.things[:-1]}"
                )
        return names

    def _reads(self, path: pathlib.Path) -> bool:
        return path.suffix.lower() in self.suffixes

    def _below(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Returns the files of this kind below a folder, sorted.

        Raises:
            UserError: no folder, no such file, or a link to nothing.
        """
        if not folder.is_dir():
            raise UserError(f"data.source: {folder} is not a folder")
        below = sorted(files_below(folder))
        files, others = [p for p in below if self._reads(p)], [p for p in below if not self._reads(p)]
        if not files:
            raise UserError(
                f"data.split: {self.kind}:{folder} is empty, must have {self.column} files "
                f"({', '.join(sorted(self.suffixes))})"
            )
        if others:
            say_once(
                f"data.source: {self.kind}:{folder}: {len(others)} files are not read, since their names do not end as "
                f"those of {self.things} do ({others[0]}{', ...' if len(others) > 1 else ''})"
            )
        return files


def _of_files(
    column: str,
    files: list[pathlib.Path],
    names: Sequence[pathlib.PurePath],
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] | None = None,
) -> Table:
    """Returns the table of files of images or sounds, with names within their folder."""
    columns: dict[str, Column] = {
        column: Blobs(len(files), lambda i: files[i].read_bytes(), lambda i: str(files[i])),
        FILE_NAME: [name.as_posix() for name in names],
        "folder": [name.parent.as_posix() for name in names],
    }
    columns |= {} if labels is None else {"label": labels}
    location = lambda i: str(files[i])  # noqa: E731
    return Table(tuple(columns), columns.__getitem__, classes=classes, location=location, ordered=False, by_name=True)


class ImageFolder(MediaFolder):
    """`images:FOLDER`: image files, read as RGB. If all are in sub-folders of the folder, these are the classes."""

    kind, things, column = "images", "images", "image"
    suffixes = IMAGE_SUFFIXES


class AudioFolder(MediaFolder):
    """`audio:FOLDER` or `audio:GLOB`: files of sound. Sub-folders of a folder are the classes, as of `images:`.

    A pattern that ends like a file of sound (`audio:DIR/*/*.wav`) matches files; these have no labels, unless
    `data.keys` makes `folder`, the path of the folder of a file, the label.
    """

    kind, things, column = "audio", "sounds", "audio"
    suffixes = AUDIO_SUFFIXES

    def __init__(self, location: str):
        super().__init__(location)
        self.folders = pathlib.PurePosixPath(location).suffix.lower() not in AUDIO_SUFFIXES
        self.single = self.folders

    def files(self, split: Split) -> list[pathlib.Path]:
        return super().files(split) if self.folders else FileSource.files(self, split)

    def content(self, split: Split) -> Any:
        return super().content(split) if self.folders else FileSource.content(self, split)

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        if self.folders:
            return super().read(paths, split)
        common = paths[0].parent
        while not all(path.is_relative_to(common) for path in paths):
            common = common.parent
        return _of_files(self.column, paths, [path.relative_to(common) for path in paths])
