"""Sources of files: plain text, lines of JSON, and images in folders."""

import bisect
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.data.file_source import FileSource, find_files, read_bytes, reading
from ssljax.data.sources import Blobs, Column, Table
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
        def get(_: str) -> Column:
            texts = [read_text(path) for path in paths]
            return texts if split.whole else _slice_lines(texts, split)

        return Table(("text",), get, sliced=True)


def _slice_lines(texts: list[str], split: Split) -> list[str]:
    """Returns the lines of a slice, one text for each document that it overlaps."""
    lines = [text.splitlines(keepends=True) for text in texts]
    ends = list(itertools.accumulate(map(len, lines)))
    start, stop, _ = split.bounds(ends[-1]).indices(ends[-1])
    firsts = [0, *ends[:-1]]
    cut = ["".join(doc[max(start - first, 0) : max(stop - first, 0)]) for doc, first in zip(lines, firsts)]
    return [text for text in cut if text]


class JsonLines(FileSource):
    """`jsonl:GLOB`: one JSON object in a line, also compressed (.gz). Columns are the keys of the first object."""

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

        return Table(tuple(rows[0]), get, location=location)


def _parse_object(line: str, location: str) -> dict[str, Any]:
    """Returns the JSON object of a line; raises UserError with its location if the line is anything else."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"data.source: {location}: not valid JSON ({error.msg}, column {error.colno})") from error
    if not isinstance(value, dict):
        raise UserError(f"data.source: {location}: got a JSON {type(value).__name__}, must be an object with keys")
    return value


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


class ImageFolder(FileSource):
    """`images:FOLDER`: image files, read as RGB. Sub-folders are the classes; a flat folder has no labels."""

    kind = "images"
    single = True

    def files(self, split: Split) -> list[pathlib.Path]:
        (folder,) = super().files(split)
        return _image_files(folder)

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        (folder,) = paths
        files = _image_files(folder)
        columns: dict[str, Column] = {
            "image": Blobs(len(files), lambda i: files[i].read_bytes(), lambda i: str(files[i]))
        }
        classes = None
        if files[0].parent != folder:
            classes = self._classes(split)
            columns["label"] = np.array([classes.index(p.relative_to(folder).parts[0]) for p in files], np.int32)
        return Table(tuple(columns), columns.__getitem__, classes=classes, location=lambda i: str(files[i]))

    def _classes(self, split: Split) -> tuple[str, ...]:
        """Returns the sub-folders of all splits together, so that a label has one meaning in every split."""
        folders, splits = find_files(self.location, split)
        if splits is not None:
            folders = [pathlib.Path(self.location.replace("{split}", name)) for name in splits]
        names = {d.name for folder in folders for d in folder.iterdir() if d.is_dir() and not d.name.startswith(".")}
        return tuple(sorted(names))


def _image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the image files below a folder, sorted.

    Raises:
        UserError: no folder, no image, or images both in the folder and in its sub-folders.
    """
    if not folder.is_dir():
        raise UserError(f"data.source: {folder} is not a folder")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(
            f"data.split: images:{folder} is empty, must have image files ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    loose = [p for p in files if p.parent == folder]
    if loose and len(loose) < len(files):
        raise UserError(
            f"data.source: {folder} has images both in itself ({loose[0].name}, ...) and in class folders; move the "
            f"loose images into class folders"
        )
    return files
