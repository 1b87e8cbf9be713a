"""`array_record:GLOB`: files of ArrayRecord, whose records are read in any order."""

import bisect
import functools
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.data.file_source import FileSource, reading
from ssljax.data.files import local_file
from ssljax.data.sources import Blobs, Column, OnDemand, Table
from ssljax.data.splits import Split

# The first bytes of JPEG, PNG, GIF, BMP, TIFF, JPEG 2000 and netpbm files; WebP and AVIF have theirs further on.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"P5\n", b"P6\n")


class ArrayRecord(FileSource):
    """`array_record:GLOB`: each record is a tf.train.Example, a map in MessagePack, or a JSON object.

    Columns are the keys of the first record. Bytes are an image if they begin as one, else text in UTF-8.
    """

    kind = "array_record"

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        records = _Records(paths)
        if not len(records):
            raise UserError(f"data.split: array_record:{self.location} [{split.name}] is empty")
        get = functools.cache(functools.partial(_column, records))
        return Table(tuple(records.records([0])[0]), get, location=records.location, ordered=len(paths) == 1)


class _Records:
    """The records of several files as mappings."""

    def __init__(self, paths: list[pathlib.Path]):
        from array_record.python.array_record_module import ArrayRecordReader

        self.paths, self._files, sizes = paths, [], []
        for path in paths:
            with reading(path, "an ArrayRecord file"):
                place, options = str(local_file(path)), "readahead_buffer_size:0"  # rows are read in any order
                self._files.append(ArrayRecordReader(place, options=options, file_reader_buffer_size=32768))
                sizes.append(self._files[-1].num_records())
        self._ends = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def location(self, row: int) -> str:
        """Returns the file and the number of a record, for messages."""
        file = bisect.bisect_right(self._ends, row)
        return f"{self.paths[file]}, record {row - (self._ends[file - 1] if file else 0)}"

    def records(self, rows: Sequence[int]) -> list[Mapping[str, Any]]:
        """Returns the keys and values of some records. Many at a time are read far faster than one by one."""
        chosen = np.asarray(rows, np.int64)
        owners = np.searchsorted(self._ends, chosen, side="right")
        out: list[Any] = [None] * len(chosen)
        for file in np.unique(owners).tolist():
            places = np.flatnonzero(owners == file)
            numbers = chosen[places] - (self._ends[file - 1] if file else 0)
            with reading(self.paths[file], "an ArrayRecord file"):
                found = _read(self._files[file], numbers.tolist())
            for place, number, content in zip(places.tolist(), numbers.tolist(), found):
                out[place] = _parse(content, self.paths[file], number)
        return out

    def values(self, name: str, rows: Sequence[int]) -> list[Any]:
        """Returns the values of a key in some records."""
        found = self.records(rows)
        for row, record in zip(rows, found):
            if name not in record:
                raise UserError(f"data.source: {self.location(int(row))}: no key {name!r}{nearest(name, record)}")
        return [record[name] for record in found]


def _read(reader: Any, numbers: list[int]) -> list[bytes]:
    """Returns records of a file; those that follow each other are read fastest as a range."""
    first, last = numbers[0], numbers[-1]
    return reader.read(first, last + 1) if numbers == list(range(first, last + 1)) else reader.read(numbers)


def _column(records: _Records, name: str) -> Column:
    (first,), read = records.values(name, [0]), functools.partial(records.values, name)
    if isinstance(first, bytes) and is_image(first):
        return Blobs(len(records), lambda row: read([row])[0], records.location, read=read)

    def values(rows: Sequence[int]) -> list[Any]:
        return [
            _text(found, f"{records.location(int(row))}, {name}") if isinstance(found, bytes) else found
            for row, found in zip(rows, read(rows))
        ]

    return OnDemand(len(records), lambda row: values([row])[0], values)


def is_image(content: bytes) -> bool:
    """Returns True if bytes begin as those of an image file."""
    return content.startswith(_IMAGES) or content[8:12] == b"WEBP" or content[4:12] == b"ftypavif"


def _text(content: bytes, location: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"data.source: {location}: neither an image nor text in UTF-8 ({error.reason})") from error


def _parse(content: bytes, path: pathlib.Path, number: int) -> Mapping[str, Any]:
    """Returns the keys and values of a record. Raises UserError, with its place, if it has none of the forms."""
    try:
        if content[:1] == b"\n":
            return _parse_example(content)
        value = json.loads(content) if content[:1] == b"{" else msgpack.unpackb(content)
    except Exception as error:  # each library raises types of its own
        raise UserError(f"data.source: {path}, record {number}: damaged ({error})") from error
    if not isinstance(value, dict):
        raise UserError(
            f"data.source: {path}, record {number}: must be a tf.train.Example, a map in MessagePack, or a JSON object"
        )
    return value


def _parse_example(content: bytes) -> Mapping[str, Any]:
    """Returns the features of a tf.train.Example; a feature with one value is that value."""
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(content).features.feature
    lists = {name: list(getattr(feature, feature.WhichOneof("kind")).value) for name, feature in features.items()}
    return {name: values[0] if len(values) == 1 else values for name, values in sorted(lists.items())}
