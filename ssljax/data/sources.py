"""Sources of rows: URIs, and tables of columns.

A source is a class with `__init__(self, location)`, `fingerprint(split)` (a JSON value that changes when the content
does) and `table(split) -> Table`. A class of the user is named in the URI: `package.module:Class:location`. Sources
that read files share `ssljax.data.file_source.FileSource`.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.base.registry import Registry
from ssljax.base.retries import retried
from ssljax.data.notes import say_once
from ssljax.data.order import RowBlocks
from ssljax.data.splits import Split

DEFAULT_KEYS = ("image", "label", "text", "audio", "graph")  # columns that are read if a config names none
FILE_NAME = "file_name"  # the column by which sources are joined

REGISTRY = Registry(
    "data source",
    {
        "array_record": "ssljax.data.records:ArrayRecord",
        "audio": "ssljax.data.files:AudioFolder",
        "builtin": "ssljax.data.builtin:Builtin",
        "csv": "ssljax.data.arrow:Csv",
        "declared": "ssljax.data.declared:Declared",
        "graphs": "ssljax.data.graphs:Graphs",
        "hf": "ssljax.data.hugging_face:HuggingFace",
        "idx": "ssljax.data.arrays:Idx",
        "images": "ssljax.data.files:ImageFolder",
        "jsonl": "ssljax.data.files:JsonLines",
        "npz": "ssljax.data.arrays:Npz",
        "parquet": "ssljax.data.arrow:Parquet",
        "text": "ssljax.data.files:TextFiles",
        "tfds": "ssljax.data.tfds:Tfds",
        "tsv": "ssljax.data.arrow:Tsv",
        "webdataset": "ssljax.data.webdataset:WebDataset",
    },
    has=("fingerprint", "table"),
)


@dataclass(frozen=True)
class Blobs:
    """A column of encoded images or sounds.

    Attributes:
        count: number of rows.
        get: row -> bytes of a file.
        name: row -> name of the file, for messages.
        read: rows -> bytes of their files, if that is faster than `get` row by row; None: it is not.
        mode: mode of the decoded image in Pillow: "RGB", or "L" for grey.
    """

    count: int
    get: Callable[[int], bytes]
    name: Callable[[int], str]
    mode: str = "RGB"
    read: Callable[[Sequence[int]], list[bytes]] | None = None

    def __len__(self) -> int:
        return self.count


class OnDemand(Sequence):
    """A column of texts or other values that is read where it is used. Rows in order are read fast.

    Args:
        count: number of rows.
        get: row -> value.
        read: rows -> values, if that is faster than `get` row by row.
        blocks: row -> its text in blocks, if a text may be too long for the memory.
    """

    def __init__(
        self,
        count: int,
        get: Callable[[int], Any],
        read: Callable[[Sequence[int]], list[Any]] | None = None,
        blocks: Callable[[int], Iterator[str]] | None = None,
    ):
        self._count, self._get, self._read = count, retried(get), None if read is None else retried(read)
        self.blocks = blocks

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < self._count:
            raise IndexError(row)
        return self._get(int(row))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self._count, _ROWS):
            yield from self.read(range(start, min(start + _ROWS, self._count)))

    def read(self, rows: Sequence[int]) -> list[Any]:
        """Returns the values of some rows."""
        if self._read is None:
            return [self._get(int(row)) for row in rows]
        return [value for start in range(0, len(rows), _ROWS) for value in self._read(rows[start : start + _ROWS])]


_ROWS = 512  # rows that are read at a time; a row may hold an image besides the values


Column = np.ndarray | Blobs | Sequence


def blocks_of(column: Column, row: int) -> Iterator[Any]:
    """Returns the value of a row in blocks: a long text in several, all else in one."""
    if isinstance(column, OnDemand) and column.blocks is not None:
        return column.blocks(row)
    return iter((b"..." if isinstance(column, Blobs) else column[row],))


@dataclass(frozen=True)
class Table:
    """The columns of one split, read on demand.

    Attributes:
        names: names of the columns.
        get: name -> column.
        splits: names of the splits that the source has; None: the source has one table for all splits.
        classes: names of the classes of the labels.
        lines: number of lines of the split, if the source has already cut its slice, by lines; None: slices count rows.
        numbers: numbers of the rows in the split "all", int64; None: `splits` is None, or they are unknown.
        location: row -> location of the row, for messages.
        ordered: True if the files state the order of the rows (an array, the lines of a file); False if it is an order
            of names, or that of a database.
        blocks: the blocks in which images are read; None: images in any order are read fast.
        by_name: True if the rows may be sorted by class, as by the names of files: a slice takes rows at random.
    """

    names: tuple[str, ...]
    get: Callable[[str], Column]
    splits: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    lines: Callable[[], int] | None = None
    numbers: Callable[[], np.ndarray] | None = None
    location: Callable[[int], str] = "row {}".format
    ordered: bool = True
    blocks: RowBlocks | None = None
    by_name: bool = False


class Source(Protocol):
    """Rows of one or more splits.

    A source of files also has `content(split)`: a JSON value that changes with the content of the rows only, not with
    paths or times of files. Without it, the identity of a run has the fingerprint.
    """

    def fingerprint(self, split: Split) -> Any:
        """Returns a JSON value that changes when the rows of the split do."""

    def table(self, split: Split) -> Table:
        """Returns the rows of the split. Raises UserError if the split does not exist."""


def expand(text: str, key: str = "data.source") -> str:
    """Replaces the environment variables ($NAME, ${NAME}) in a text.

    Raises:
        UserError: a variable is not set; the message begins with `key`.
    """

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise UserError(f"{key}: environment variable {name} is not set (in {text!r})")
        return os.environ[name]

    return re.sub(r"\$(\w+)|\$\{(\w+)\}", value, text)


def open_source(uri: str) -> Source:
    """Returns the source of a URI.

    Raises:
        UserError: unknown kind of source, or an environment variable that is not set.
    """
    parts = re.split(r"\+(?=[A-Za-z_][\w.]*:)", uri)
    if len(parts) > 1:
        return Join([open_source(part) for part in parts], parts)
    scheme, colon, location = uri.partition(":")
    if not colon:
        raise UserError(f"data.source: got {uri!r}, must be 'kind:location' with a kind of {', '.join(REGISTRY)}")
    if "." in scheme:  # a class of the user
        name, _, location = location.partition(":")
        return REGISTRY.get(f"{scheme}:{name}", "data.source")(os.path.expanduser(expand(location)))
    if scheme not in REGISTRY:
        raise UserError(
            f"data.source: unknown kind of source {scheme!r} in {uri!r}{nearest(scheme, REGISTRY)} "
            f"(allowed: {', '.join(REGISTRY)})"
        )
    return REGISTRY.get(scheme, "data.source")(os.path.expanduser(expand(location)))


def unknown_split(name: str, splits: tuple[str, ...], title: str) -> UserError:
    """Returns the error for a split that the source `title` does not have."""
    return UserError(
        f"data.split: unknown split {name!r} of {title}{nearest(name, splits)} (it has: {', '.join(splits)})"
    )


def content_of(source: Source, split: Split) -> Any:
    """Returns a JSON value that changes with the content of the rows of a split."""
    return source.content(split) if hasattr(source, "content") else source.fingerprint(split)


class Join:
    """Several sources side by side: `a+b`.

    If each has the column `file_name`, row i is joined with the rows of that name in the others (or, if names differ in
    folder or suffix, of that stem). Otherwise row i of the join is row i of each source, if all have a stated order.
    """

    def __init__(self, sources: list[Source], titles: list[str]):
        self.sources, self.titles = sources, titles

    def fingerprint(self, split: Split) -> Any:
        return [source.fingerprint(split) for source in self.sources]

    def content(self, split: Split) -> Any:
        return [content_of(source, split) for source in self.sources]

    def table(self, split: Split) -> Table:
        """Returns the columns of all sources.

        Raises:
            UserError: rows have no stated order and no names, or a row has no partner or several.
        """
        tables = [source.table(Split(split.name)) for source in self.sources]
        by_name = all(FILE_NAME in table.names for table in tables)
        if by_name:
            tables = [tables[0], *_aligned(tables, self.titles)]
        for table, title in zip(tables, self.titles):
            if not table.ordered and not by_name:
                raise UserError(
                    f"data.source: {title} states no order of its rows, so `a+b` cannot join them by position; give "
                    f"the other source a column {FILE_NAME!r} with the names of the files"
                )
        owners: dict[str, list[Table]] = {}
        for table in tables:
            for name in table.names:
                owners.setdefault(name, []).append(table)

        def get(name: str) -> Column:
            tables = owners[name.partition("@")[0]]
            if len(tables) > 1 and not (by_name and name == FILE_NAME):
                raise UserError(f"data.keys: column {name!r} is in more than one of the joined sources")
            return tables[0].get(name)

        splits = [t.splits for t in tables if t.splits is not None]
        classes = [t.classes for t in tables if t.classes is not None]
        return Table(
            tuple(owners),
            get,
            splits[0] if splits else None,
            classes[0] if classes else None,
            location=tables[0].location,
            ordered=tables[0].ordered,
        )


def _aligned(tables: list[Table], titles: list[str]) -> list[Table]:
    """Returns all tables except the first with their rows in the order of the names of the first.

    Raises:
        UserError: a row of the first table has no partner in another, or several.
    """
    names = [_file_names(table, title) for table, title in zip(tables, titles)]
    aligned = []
    for table, other, title in zip(tables[1:], names[1:], titles[1:]):
        rows = _partners(names[0], other, titles[0], title)
        left = len(other) - len(set(rows.tolist()))
        if left:
            say_once(f"data.source: {left} of {len(other)} rows of {title} have no partner in {titles[0]}")
        aligned.append(dataclasses.replace(table, get=_picked(table.get, rows)))
    return aligned


def _file_names(table: Table, title: str) -> list[str]:
    column = table.get(FILE_NAME)
    names: list[Any] = [None] * len(column) if isinstance(column, Blobs) else list(column)
    for row, name in enumerate(names):
        if not isinstance(name, str):
            raise UserError(
                f"data.source: {FILE_NAME} is {name!r:.40} at {table.location(row)} of {title}, must be text"
            )
    return names


def _partners(names: list[str], others: list[str], title: str, other_title: str) -> np.ndarray:
    """Returns the index in `others` of the partner of each of `names`, int64 [N].

    Partners have equal names; if no two have, names without folder, then without suffix, are compared.
    """
    forms: tuple[Callable[[str], str], ...] = (
        lambda name: name,
        lambda name: name.rpartition("/")[2],
        lambda name: os.path.splitext(name)[0],
        lambda name: os.path.splitext(name.rpartition("/")[2])[0],
    )
    keys: list[str] = names
    rows: dict[str, list[int]] = {}
    for form in forms:
        keys, rows = list(map(form, names)), {}
        for row, name in enumerate(map(form, others)):
            rows.setdefault(name, []).append(row)
        if not rows.keys().isdisjoint(keys):
            break
    for name, key in zip(names, keys):
        count = len(rows.get(key, ()))
        if count != 1:
            raise UserError(
                f"data.source: {name!r} of {title} has {count} partners in {other_title}, must have one"
                + (nearest(name, others[:10_000]) if count == 0 else f" (rows {rows[key][0]}, {rows[key][1]}, ...)")
            )
    if len(set(keys)) < len(set(names)):
        raise UserError(f"data.source: several files of {title} are called the same in different folders")
    return np.array([rows[key][0] for key in keys], np.int64)


def _picked(get: Callable[[str], Column], rows: np.ndarray) -> Callable[[str], Column]:
    """Returns a function name -> column with the given rows."""

    def picked(name: str) -> Column:
        column = get(name)
        if isinstance(column, Blobs):
            many = column.read
            return Blobs(
                len(rows),
                lambda i: column.get(int(rows[i])),
                lambda i: column.name(int(rows[i])),
                column.mode,
                None if many is None else lambda chosen: many(rows[chosen].tolist()),
            )
        if isinstance(column, np.ndarray):
            return column[rows]
        return OnDemand(len(rows), lambda i: column[int(rows[i])])

    return picked
