"""Tables of Apache Arrow in blocks of rows that are read on demand: `parquet:`, `csv:` and `tsv:`."""

import bisect
import collections
import contextlib
import functools
import gzip
import itertools
import json
import pathlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.data.cache import build_once, default_root
from ssljax.data.file_source import FileSource, reading, stamp
from ssljax.data.order import RowBlocks
from ssljax.data.sources import Blobs, Column, OnDemand, Table
from ssljax.data.splits import Split
from ssljax.data.storage import arrow_file, is_remote, path_of

if TYPE_CHECKING:
    import pyarrow as pa

_KEPT = 256 << 20  # bytes of blocks that stay in memory, about
_MIXED = _KEPT // 2  # bytes of blocks whose rows are mixed by the order of an epoch, about


class Parquet(FileSource):
    """`parquet:GLOB`: files of Parquet. Columns are numbers, texts, lists of numbers, or bytes of image files.

    Row groups are read on demand. An epoch reads each about once: its order mixes the rows of a few row groups at a
    time, which together have about 128 MiB (at least two).
    """

    kind = "parquet"

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        import pyarrow.parquet as pq

        files = []
        for path in paths:
            with reading(path, "a Parquet file"), arrow_file(path) as file:
                files.append(pq.read_metadata(file))
        schema = _common_schema(paths, [file.schema.to_arrow_schema() for file in files])
        groups = [[file.row_group(i) for i in range(file.num_row_groups)] for file in files]

        def column(file: int, group: int, name: str) -> "pa.ChunkedArray":
            with (
                reading(paths[file], "a Parquet file"),
                arrow_file(paths[file]) as place,
                pq.ParquetFile(place, metadata=files[file]) as opened,
            ):
                return opened.read_row_group(group, [name]).column(name)

        blocks = Blocks(paths, [[group.num_rows for group in of_file] for of_file in groups], schema, column)
        largest = max((group.total_byte_size for of_file in groups for group in of_file), default=1)
        return table_of(blocks, mixed=max(2, _MIXED // max(largest, 1)))


class Csv(FileSource):
    """`csv:GLOB`: tables of comma-separated values whose first line names the columns, also compressed (.gz).

    `csv:GLOB#NAME,NAME`: files without such a line; the names of their columns, in order. A file is converted once, to
    an Arrow file in the folder of caches.
    """

    kind = "csv"
    separator = ","

    def __init__(self, location: str):
        named = None if path_of(location).exists() else re.fullmatch(r"(.+)#([\w -]+(?:,[\w -]+)*)", location)
        super().__init__(named[1] if named else location)
        names = [name.strip() for name in named[2].split(",")] if named else []
        self.names = names or None
        for name in names:
            if not name or names.count(name) > 1:
                raise UserError(f"data.source: {self.kind}:{location} names the column {name!r} twice, or not at all")

    @property
    def form(self) -> Any:
        return [self.kind, self.names]

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        import pyarrow as pa

        key = digest([1, self.form, stamp(paths)])
        folder = build_once(default_root() / f"csv-{key}", functools.partial(self._convert, paths))
        files = [pa.ipc.open_file(pa.memory_map(str(folder / f"{i}.arrow"))) for i in range(len(paths))]
        schema = _common_schema(paths, [file.schema for file in files])
        sizes = [[file.get_batch(i).num_rows for i in range(file.num_record_batches)] for file in files]

        def column(file: int, block: int, name: str) -> "pa.ChunkedArray":
            return pa.chunked_array([files[file].get_batch(block).column(name)])

        return table_of(Blocks(paths, sizes, schema, column, offset=1 if self.names else 2))

    def _convert(self, paths: list[pathlib.Path], folder: pathlib.Path) -> None:
        """Writes each file as an Arrow file."""
        import pyarrow as pa
        import pyarrow.csv

        # Newlines within quotes belong to a value. An empty value is missing, unless it is a text.
        quoted = self.separator == ","
        parse = pa.csv.ParseOptions(delimiter=self.separator, quote_char=quoted and '"', newlines_in_values=quoted)
        options = pa.csv.ReadOptions(column_names=self.names)
        for i, path in enumerate(paths):
            with (
                reading(path, f"a table of values separated by {'commas' if quoted else 'tabs'}"),
                _csv_input(path) as content,
                pa.csv.open_csv(content, read_options=options, parse_options=parse) as table,
                pa.OSFile(str(folder / f"{i}.arrow"), "wb") as out,
                pa.ipc.new_file(out, table.schema) as file,
            ):
                for batch in table:
                    file.write_batch(batch)


@contextlib.contextmanager
def _csv_input(path: pathlib.Path) -> Iterator[Any]:
    """Yields a table of text for Apache Arrow, decompressed if its name ends in .gz."""
    if is_remote(path) and path.suffix == ".gz":
        with path.open("rb") as file, gzip.open(file) as content:
            yield content
        return
    with arrow_file(path) as name:
        yield name


class Tsv(Csv):
    """`tsv:GLOB` and `tsv:GLOB#NAME,NAME`: tables of values separated by tabs, one row in a line, without quoting."""

    kind = "tsv"
    separator = "\t"


def _common_schema(paths: list[pathlib.Path], schemas: "list[pa.Schema]") -> "pa.Schema":
    """Returns the schema of several files. Raises UserError if they differ."""
    for path, schema in zip(paths, schemas):
        if not schema.equals(schemas[0]):
            mine, others = ({f"{f.name}: {f.type}" for f in s} for s in (schema, schemas[0]))
            raise UserError(
                f"data.source: the columns of {path} differ from those of {paths[0]} "
                f"({', '.join(sorted(mine ^ others)) or 'in their order'})"
            )
    return schemas[0]


class Blocks:
    """The columns of files in blocks of rows (row groups, record batches).

    The blocks that were read last stay in memory: at least one, and up to 256 MiB.

    Args:
        paths: the files.
        sizes: rows of each block of each file.
        schema: names and types of the columns.
        read: (file, block of the file, column) -> values.
        offset: number of the first row of a file, for messages.
    """

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        sizes: Sequence[Sequence[int]],
        schema: "pa.Schema",
        read: Callable[[int, int, str], "pa.ChunkedArray"],
        offset: int = 0,
    ):
        self.paths, self.schema, self.offset = paths, schema, offset
        self._read = read
        self._blocks = [(file, block) for file, of_file in enumerate(sizes) for block in range(len(of_file))]
        self.ends = list(itertools.accumulate(rows for of_file in sizes for rows in of_file))
        self._file_ends = list(itertools.accumulate(sum(of_file) for of_file in sizes))
        self._kept: collections.OrderedDict[tuple[int, str], Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def starts(self) -> np.ndarray:
        """Returns the first row of each block that has rows, and the number of rows, int64 [K + 1]."""
        return np.unique([0, *self.ends])

    def value(self, name: str, row: int) -> Any:
        """Returns a value of a column, as an object of Python."""
        block = bisect.bisect_right(self.ends, row)
        return self._column(block, name)[row - (self.ends[block - 1] if block else 0)].as_py()

    def whole(self, name: str) -> "pa.ChunkedArray":
        """Returns a whole column."""
        import pyarrow as pa

        chunks = [chunk for block in self._blocks for chunk in self._read(*block, name).chunks]
        return pa.chunked_array(chunks, self.schema.field(name).type)

    def location(self, row: int) -> str:
        """Returns the file and the number of a row, for messages."""
        file = bisect.bisect_right(self._file_ends, row)
        return f"{self.paths[file]}, row {row - (self._file_ends[file - 1] if file else 0) + self.offset}"

    def _column(self, block: int, name: str) -> Any:
        with self._lock:
            if (block, name) in self._kept:
                self._kept.move_to_end((block, name))
                return self._kept[block, name]
            values = self._kept[block, name] = self._read(*self._blocks[block], name)
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _KEPT:
                self._kept.popitem(last=False)
        return values


def table_of(blocks: Blocks, mixed: int | None = None) -> Table:
    """Returns the table of blocks.

    Args:
        blocks: the blocks.
        mixed: number of blocks whose rows the order of an epoch mixes; None: rows in any order are read fast.
    """
    return Table(
        tuple(blocks.schema.names),
        functools.partial(_column, blocks),
        classes=_classes(blocks.schema, "label"),
        location=blocks.location,
        ordered=len(blocks.paths) == 1,
        blocks=None if mixed is None else RowBlocks(blocks.starts(), mixed),
    )


def _column(blocks: Blocks, name: str) -> Column:
    """Returns numbers as an array, encoded images as `Blobs`, and all else on demand."""
    import pyarrow.types as types

    kind = blocks.schema.field(name).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return _numbers(blocks, name)
    # Hugging Face `datasets` writes an image as {bytes, path}.
    if types.is_binary(kind) or types.is_large_binary(kind) or (types.is_struct(kind) and "bytes" in kind.names):
        return Blobs(len(blocks), functools.partial(_image, blocks, name), blocks.location)
    return OnDemand(len(blocks), functools.partial(blocks.value, name))


def _image(blocks: Blocks, name: str, row: int) -> bytes:
    """Returns the bytes of an encoded image."""
    value = blocks.value(name, row)
    value = value["bytes"] if isinstance(value, dict) else value
    if value is None:
        raise UserError(f"data.source: {name} has no value at {blocks.location(row)}, must be an image")
    return value


def _numbers(blocks: Blocks, name: str) -> np.ndarray:
    """Returns a column of numbers. Raises UserError if a value is missing."""
    values = blocks.whole(name)
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise UserError(f"data.source: {name} has no value at {blocks.location(row)}")
    return values.to_numpy()


def _classes(schema: "pa.Schema", name: str) -> tuple[str, ...] | None:
    """Returns the names of classes that Hugging Face `datasets` writes into the metadata of its files."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features[name]["names"]) if features[name]["_type"] == "ClassLabel" else None
    except (KeyError, ValueError, TypeError):
        return None
