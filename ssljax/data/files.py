"""Sources that are files of text, lines of JSON, or pictures in folders."""

import bisect
import gzip
import itertools
import json
import pathlib
import zlib
from typing import Any

import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.data.sources import Blobs, Column, Table, find_files, stamp
from ssljax.data.splits import Split


def read_text(path: pathlib.Path) -> str:
    """The UTF-8 text of a file, unpacked if it ends in .gz.

    Raises:
        UserError: not UTF-8, damaged archive, unreadable.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"data.source: {path} is not UTF-8 text (byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data.source: cannot read {path} ({error})") from error


class TextFiles:
    """`text:GLOB`: plain text, one document a file (.gz too). Slices of a split count lines, not files."""

    def __init__(self, location: str):
        self.location = location

    def fingerprint(self, split: Split) -> Any:
        return stamp(find_files(self.location, split)[0])

    def table(self, split: Split) -> Table:
        paths, splits = find_files(self.location, split)

        def get(_: str) -> Column:
            texts = [read_text(path) for path in paths]
            return texts if split.whole else _slice_lines(texts, split)

        return Table(("text",), get, splits, sliced=True)


def _slice_lines(texts: list[str], split: Split) -> list[str]:
    lines = [text.splitlines(keepends=True) for text in texts]
    ends = list(itertools.accumulate(map(len, lines)))
    start, stop, _ = split.bounds(ends[-1]).indices(ends[-1])
    firsts = [0, *ends[:-1]]
    cut = ["".join(doc[max(start - first, 0) : max(stop - first, 0)]) for doc, first in zip(lines, firsts)]
    return [text for text in cut if text]


class JsonLines:
    """`jsonl:GLOB`: one JSON object a line (.gz too); columns are the keys of the first object."""

    def __init__(self, location: str):
        self.location = location

    def fingerprint(self, split: Split) -> Any:
        return stamp(find_files(self.location, split)[0])

    def table(self, split: Split) -> Table:
        paths, splits = find_files(self.location, split)
        rows: list[dict[str, Any]] = []
        lines: list[int] = []  # of each row, from 1
        firsts: list[int] = []  # first row of each file
        for path in paths:
            firsts.append(len(rows))
            # Not splitlines(): JSON texts may hold other line separators than the newline.
            for number, line in enumerate(read_text(path).split("\n"), 1):
                if line.strip():
                    rows.append(_object(line, f"{path}:{number}"))
                    lines.append(number)

        def where(row: int) -> str:
            return f"{paths[bisect.bisect_right(firsts, row) - 1]}:{lines[row]}"

        if not rows:
            raise UserError(f"data.split: jsonl:{self.location} [{split.name}] is empty")
        names = tuple(rows[0])

        def get(name: str) -> Column:
            for i, row in enumerate(rows):
                if name not in row:
                    raise UserError(f"data.source: {where(i)}: no key {name!r}{nearest(name, row)}")
            return [row[name] for row in rows]

        return Table(names, get, splits, where=where)


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"data.source: {place}: not valid JSON ({error.msg}, column {error.colno})") from error
    if not isinstance(value, dict):
        raise UserError(f"data.source: {place}: a JSON {type(value).__name__}, must be an object with keys")
    return value


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


class ImageFolder:
    """`images:FOLDER`: pictures as RGB; sub-folders are the classes, a flat folder has no labels."""

    def __init__(self, location: str):
        self.location = location

    def _find(self, split: Split) -> tuple[list[pathlib.Path], np.ndarray | None, tuple[str, ...] | None, Any]:
        folders, splits = find_files(self.location, split)
        folder = folders[0]
        if not folder.is_dir():
            raise UserError(f"data.source: {folder} is not a folder")
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise UserError(f"data.split: images:{folder} is empty: no picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
        loose = [p for p in paths if p.parent == folder]
        if loose and len(loose) < len(paths):
            raise UserError(f"data.source: {folder} holds pictures beside its class folders ({loose[0].name}, ...)")
        if loose:
            return paths, None, None, splits
        # The classes are those of all splits together, so that a label means the same in each.
        siblings = [pathlib.Path(self.location.replace("{split}", name)) for name in splits or ()] or [folder]
        classes = sorted({d.name for s in siblings for d in s.iterdir() if d.is_dir() and not d.name.startswith(".")})
        labels = np.array([classes.index(p.relative_to(folder).parts[0]) for p in paths], np.int32)
        return paths, labels, tuple(classes), splits

    def fingerprint(self, split: Split) -> Any:
        return stamp(self._find(split)[0])

    def table(self, split: Split) -> Table:
        paths, labels, classes, splits = self._find(split)
        images = Blobs(len(paths), lambda i: paths[i].read_bytes(), lambda i: str(paths[i]))
        columns: dict[str, Column] = {"image": images}
        if labels is not None:
            columns["label"] = labels
        return Table(tuple(columns), columns.__getitem__, splits, classes, where=lambda i: str(paths[i]))
