"""Sources of files: plain text, lines of JSON, and images in folders."""

import bisect
import functools
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.data.content import digest_files
from ssljax.data.file_source import FileSource, read_bytes, reading
from ssljax.data.notes import say_once
from ssljax.data.paths import files_below, folders_in, matches
from ssljax.data.sources import FILE_NAME, Blobs, Column, Table
from ssljax.data.splits import Split


def read_text(path: pathlib.Path) -> str:
    """Returns the UTF-8 text of a file, decompressed if its name ends in .gz.

    Raises:
        UserError: the file cannot be read, is damaged, or is not UTF-8.
    """
    with reading(path, "UTF-8 text"):
        return read_bytes(path).decode("utf-8-sig")  # a byte order mark is no text


class TextFiles(FileSource):
    """`text:GLOB`: plain text, one document in a file, also compressed (.gz). Slices of a split count lines."""

    kind = "text"

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        @functools.cache
        def files() -> list[str]:
            return [read_text(path) for path in paths]

        @functools.cache
        def documents() -> list[tuple[str, str]]:
            texts = files() if split.whole else _slice_lines(files(), split)
            return [(path.name.removesuffix(".gz"), text) for path, text in zip(paths, texts) if text or split.whole]

        def lines() -> int:
            return sum(len(text.splitlines()) for text in files())

        def get(name: str) -> Column:
            return [document[0 if name == FILE_NAME else 1] for document in documents()]

        return Table(("text", FILE_NAME), get, lines=lines, ordered=len(paths) == 1)


def _slice_lines(texts: list[str], split: Split) -> list[str]:
    """Returns the lines of a slice in each document; an empty text for a document that it does not overlap."""
    lines = [text.splitlines(keepends=True) for text in texts]
    ends = list(itertools.accumulate(map(len, lines)))
    start, stop, _ = split.bounds(ends[-1]).indices(ends[-1])
    firsts = [0, *ends[:-1]]
    return ["".join(doc[max(start - first, 0) : max(stop - first, 0)]) for doc, first in zip(lines, firsts)]


class JsonLines(FileSource):
    """`jsonl:GLOB`: one JSON object in a line, also compressed (.gz). Columns are the keys of the objects.

    A column that is used must be a key of every object.
    """

    kind = "jsonl"

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        rows: list[dict[str, Any]] = []
        lines: list[int] = []  # line number of each row, counted from 1
        firsts: list[int] = []  # first row of each file
        for path in paths:
            firsts.append(len(rows))
            # Not splitlines(): JSON texts may contain other line separators than the newline.
            for number, line in enumerate(read_text(path).split("\n"), 1):
                if line.strip():
                    rows.append(_parse_object(line, f"{path}:{number}"))
                    lines.append(number)
        if not rows:
            raise UserError(f"data.split: jsonl:{self.location} [{split.name}] is empty, must have at least one line")

        def location(row: int) -> str:
            return f"{paths[bisect.bisect_right(firsts, row) - 1]}:{lines[row]}"

        def get(name: str) -> Column:
            for i, row in enumerate(rows):
                if name not in row:
                    raise UserError(f"data.source: {location(i)}: no key {name!r}{nearest(name, row)}")
            return [row[name] for row in rows]

        names = dict.fromkeys(name for row in rows for name in row)
        return Table(tuple(names), get, location=location, ordered=len(paths) == 1)


def _parse_object(line: str, location: str) -> dict[str, Any]:
    """Returns the JSON object of a line; raises UserError with its location if the line is anything else."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"data.source: {location}: not valid JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise UserError(f"data.source: {location}: lists or objects are nested too deeply") from error
    except ValueError as error:  # Python refuses to read integers of thousands of digits
        raise UserError(f"data.source: {location}: a number has too many digits") from error
    if not isinstance(value, dict):
        raise UserError(f"data.source: {location}: got a JSON {type(value).__name__}, must be an object with keys")
    return value


# fmt: off
IMAGE_SUFFIXES = {
    ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}
# fmt: on


class ImageFolder(FileSource):
    """`images:FOLDER`: image files, read as RGB. Sub-folders are the classes; a flat folder has no labels.

    The column `file_name` has the path of an image within the folder.
    """

    kind = "images"
    single = True
    folders = True

    def files(self, split: Split) -> list[pathlib.Path]:
        (folder,) = super().files(split)
        return _image_files(folder)

    def content(self, split: Split) -> Any:
        (folder,) = super().files(split)
        return digest_files([(p.relative_to(folder).as_posix(), p) for p in _image_files(folder)])

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        (folder,) = paths
        files = _image_files(folder)
        columns: dict[str, Column] = {
            "image": Blobs(len(files), lambda i: files[i].read_bytes(), lambda i: str(files[i])),
            FILE_NAME: [path.relative_to(folder).as_posix() for path in files],
        }
        classes = None
        if files[0].parent != folder:
            classes = self._classes(folder)
            numbers = {name: number for number, name in enumerate(classes)}
            columns["label"] = np.array([numbers[p.relative_to(folder).parts[0]] for p in files], np.int32)
        return Table(
            tuple(columns), columns.__getitem__, classes=classes, location=lambda i: str(files[i]), ordered=False
        )

    def _classes(self, folder: pathlib.Path) -> tuple[str, ...]:
        """Returns the sub-folders of all splits together, so that a label has one meaning in every split."""
        folders = {folder}
        if "{split}" in self.location:
            folders |= {path for path, _ in matches(self.location) if path.is_dir()}
        below = [sub for parent in folders for sub in folders_in(parent)]
        names = tuple(sorted({sub.name for sub in below}))
        filled = {sub.name for sub in below if any(_is_image(path) for path in files_below(sub))}
        for name in names:
            if name not in filled:
                say_once(f"data.source: the class folder {name!r} of images:{self.location} has no image")
        return names


def _is_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the image files below a folder, sorted.

    Raises:
        UserError: no folder, no image, images both in the folder and in its sub-folders, or a link to nothing.
    """
    if not folder.is_dir():
        raise UserError(f"data.source: {folder} is not a folder")
    below = sorted(files_below(folder))
    files, others = [p for p in below if _is_image(p)], [p for p in below if not _is_image(p)]
    if not files:
        raise UserError(
            f"data.split: images:{folder} is empty, must have image files ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    if others:
        say_once(
            f"data.source: images:{folder}: {len(others)} files are not read, since their names do not end as those of "
            f"images do ({others[0]}{', ...' if len(others) > 1 else ''})"
        )
    loose = [p for p in files if p.parent == folder]
    if loose and len(loose) < len(files):
        raise UserError(
            f"data.source: {folder} has images both in itself ({loose[0].name}, ...) and in class folders; move the "
            f"loose images into class folders"
        )
    return files
