"""`webdataset:GLOB`: tar files of examples, indexed once and then read in any order."""

import bisect
import functools
import itertools
import json
import pathlib
import tarfile
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.data.cache import build_once, default_root
from ssljax.data.file_source import FileSource, reading, stamp
from ssljax.data.files import AUDIO_SUFFIXES, IMAGE_SUFFIXES, plain_file
from ssljax.data.sources import FILE_NAME, Blobs, Column, OnDemand, Table
from ssljax.data.splits import Split
from ssljax.data.storage import read_ranges

_TEXTS = ("txt", "text", "transcript", "caption")
_NUMBERS = ("cls", "cls2", "class", "count", "index", "inx", "id")
_NAMES = {"label": ("cls", "class"), "text": _TEXTS}  # name of a default key -> endings, the first that exists


class WebDataset(FileSource):
    """`webdataset:GLOB`: tar files in which consecutive members that are called alike up to the first dot are a row.

    The endings of their names are the columns: images (`jpg`, `png`, ...), sounds (`flac`, `wav`, ...), numbers (`cls`,
    `id`, ...), texts (`txt`) and values in JSON (`json`, and `json.KEY` for a key of its objects). `image`, `audio`,
    `label` and `text` are further names of such columns. An index of each file is kept in the folder of caches.
    """

    kind = "webdataset"

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        shards = [_Shard(path) for path in paths]
        rows = _Rows(shards)
        if not len(rows):
            raise UserError(f"data.split: webdataset:{self.location} [{split.name}] is empty")
        return Table(tuple(rows.names), rows.column, location=rows.location, ordered=len(paths) == 1)


class _Shard:
    """A tar file and its index.

    Attributes:
        path: the file, for messages.
        keys: names of the rows, up to the first dot.
        places: ending -> int64 [N, 2], start and size of a member in the file; -1 if a row has none.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        with reading(path, "a tar file"):
            self._file = plain_file(path)
        folder = build_once(default_root() / f"tar-{digest([1, stamp([path])])}", self._index)
        self.keys: list[str] = json.loads((folder / "keys.json").read_text())
        with np.load(folder / "places.npz") as arrays:
            self.places = {name: arrays[name] for name in arrays.files}

    def content(self, ending: str, i: int) -> bytes | None:
        """Returns a member of a row; None if the row has no such member."""
        start, size = self.places[ending][i] if ending in self.places else (-1, 0)
        if start < 0:
            return None
        with reading(self.path, "a tar file"):
            return read_ranges([(self._file, start, start + size)])[0]

    def _index(self, folder: pathlib.Path) -> None:
        keys: list[str] = []
        found: dict[str, list[tuple[int, int, int]]] = {}  # ending -> rows, starts, sizes
        with (
            reading(self.path, "a tar file"),
            self._file.open("rb") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in tar:
                name = pathlib.PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                stem, _, ending = name.name.partition(".")
                key = (name.parent / stem).as_posix()
                if not keys or keys[-1] != key:
                    keys.append(key)
                found.setdefault(ending.lower(), []).append((len(keys) - 1, member.offset_data, member.size))
        places = {}
        for ending, members in found.items():
            places[ending] = np.full((len(keys), 2), -1, np.int64)
            rows, starts, sizes = np.array(members, np.int64).T
            places[ending][rows] = np.stack([starts, sizes], 1)
        (folder / "keys.json").write_text(json.dumps(keys))
        np.savez(folder / "places.npz", **places)  # type: ignore[arg-type]


class _Rows:
    """The rows of several tar files."""

    def __init__(self, shards: list[_Shard]):
        self.shards = shards
        self._ends = list(itertools.accumulate(len(shard.keys) for shard in shards))
        self.endings = list(dict.fromkeys(ending for shard in shards for ending in shard.places))
        self._other: dict[str, str] = {}
        for name, suffixes in (("image", IMAGE_SUFFIXES), ("audio", AUDIO_SUFFIXES)):
            files = [ending for ending in self.endings if f".{ending}" in suffixes]
            self._other |= {name: files[0]} if len(files) == 1 else {}
        for name, endings in _NAMES.items():
            there = [ending for ending in endings if ending in self.endings]
            self._other |= {name: there[0]} if there else {}

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of the columns."""
        inner = []
        if "json" in self.endings and len(self):
            value = self._json("json", 0)
            inner = [f"json.{key}" for key in value] if isinstance(value, dict) else []
        return list(dict.fromkeys([*self._other, *self.endings, *inner, FILE_NAME]))

    def __len__(self) -> int:
        return self._ends[-1]

    def location(self, row: int) -> str:
        shard, i = self._place(row)
        return f"{shard.path}, {shard.keys[i]}"

    @functools.cache  # noqa: B019
    def column(self, name: str) -> Column:
        """Returns the column of an ending, of a key of JSON, or of the names of the rows."""
        if name == FILE_NAME:
            return [key for shard in self.shards for key in shard.keys]
        ending = self._other.get(name, name)
        if f".{ending}" in IMAGE_SUFFIXES | AUDIO_SUFFIXES:
            return Blobs(len(self), functools.partial(self._content, ending), self.location)
        if ending in _NUMBERS:
            return OnDemand(len(self), lambda row: self._number(ending, row))
        if ending in _TEXTS:
            return OnDemand(len(self), lambda row: self._text(ending, row))
        if ending.startswith("json"):
            return OnDemand(len(self), lambda row: self._json(ending, row))
        raise UserError(f"data.keys: members that end in .{ending} are neither images, sounds, numbers, texts nor JSON")

    def _place(self, row: int) -> tuple[_Shard, int]:
        file = bisect.bisect_right(self._ends, row)
        return self.shards[file], row - (self._ends[file - 1] if file else 0)

    def _content(self, ending: str, row: int) -> bytes:
        shard, i = self._place(row)
        content = shard.content(ending, i)
        if content is None:
            raise UserError(f"data.source: {self.location(row)}: has no member .{ending}")
        return content

    def _text(self, ending: str, row: int) -> str:
        try:
            return self._content(ending, row).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"data.source: {self.location(row)}.{ending}: not UTF-8 ({error.reason})") from error

    def _number(self, ending: str, row: int) -> int:
        text = self._text(ending, row)
        try:
            return int(text)
        except ValueError as error:
            raise UserError(
                f"data.source: {self.location(row)}.{ending}: got {text!r:.40}, must be a number"
            ) from error

    def _json(self, name: str, row: int) -> Any:
        try:
            value = json.loads(self._text("json", row))
        except (ValueError, RecursionError) as error:
            raise UserError(f"data.source: {self.location(row)}.json: not valid JSON ({error})") from error
        key = name.removeprefix("json").removeprefix(".")
        if not key:
            return value
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"data.source: {self.location(row)}.json: no key {key!r}")
        return value[key]
