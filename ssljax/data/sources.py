"""Where rows come from: URIs, tables of columns, the choice of rows.

A source is a class with `__init__(self, location)`, `fingerprint(split)` (a JSON value that changes when the content
does) and `table(split) -> Table`. Users name their own in a URI: `package.module:Class:location`.
"""

import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.base.registry import Registry
from ssljax.data.config import Part
from ssljax.data.splits import Split, parse_split

REGISTRY = Registry(
    "data source",
    {
        "builtin": "ssljax.data.builtin:Builtin",
        "idx": "ssljax.data.arrays:Idx",
        "images": "ssljax.data.files:ImageFolder",
        "jsonl": "ssljax.data.files:JsonLines",
        "npz": "ssljax.data.arrays:Npz",
        "text": "ssljax.data.files:TextFiles",
        "tfds": "ssljax.data.tfds:Tfds",
    },
)


@dataclass(frozen=True)
class Blobs:
    """A column of encoded images: `get(row)` gives the bytes of a file, `name(row)` what to call it in an error."""

    count: int
    get: Callable[[int], bytes]
    name: Callable[[int], str]
    mode: str = "RGB"

    def __len__(self) -> int:
        return self.count


Column = np.ndarray | Blobs | list


@dataclass(frozen=True)
class Table:
    """Columns of one split, read when asked for.

    Attributes:
        names: of the columns.
        get: name -> column.
        splits: that the source tells apart (this table is one of them); None: it holds one table for all.
        classes: names of the labels.
        sliced: the source has already cut the slice that the split asks for.
        where: row -> where it is, for messages.
    """

    names: tuple[str, ...]
    get: Callable[[str], Column]
    splits: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    sliced: bool = False
    where: Callable[[int], str] = "row {}".format


class Source(Protocol):
    def fingerprint(self, split: Split) -> Any: ...

    def table(self, split: Split) -> Table: ...


@dataclass(frozen=True)
class Rows:
    """Chosen columns of a table and the numbers of the chosen rows in it.

    `index` [N] int64 are row numbers of the table, before filter and slice: the `id` of an example.
    """

    columns: dict[str, Column]
    index: np.ndarray
    classes: tuple[str, ...] | None
    title: str
    where: Callable[[int], str]


# ---- URIs


def expand(text: str, key: str = "data.source") -> str:
    """`text` with environment variables and `~` replaced.

    Raises:
        UserError: a variable is not set.
    """

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise UserError(f"{key}: environment variable {name} is not set (in {text!r})")
        return os.environ[name]

    return re.sub(r"\$(\w+)|\$\{(\w+)\}", value, text)


def open_source(uri: str) -> Source:
    """The source behind a URI.

    Raises:
        UserError: unknown scheme (with those that exist), unset environment variable.
    """
    parts = re.split(r"\+(?=[A-Za-z_][\w.]*:)", uri)
    if len(parts) > 1:
        return Join([open_source(part) for part in parts])
    scheme, colon, location = uri.partition(":")
    if not colon:
        raise UserError(f"data.source: got {uri!r}, must be 'kind:location' with a kind of {', '.join(REGISTRY)}")
    if "." in scheme:  # a user's own class
        name, _, location = location.partition(":")
        return REGISTRY.get(f"{scheme}:{name}", "data.source")(expand(location))
    if scheme not in REGISTRY:
        raise UserError(
            f"data.source: unknown kind of source {scheme!r} in {uri!r}{nearest(scheme, REGISTRY)} "
            f"(known: {', '.join(REGISTRY)})"
        )
    return REGISTRY.get(scheme, "data.source")(os.path.expanduser(expand(location)))


def find_files(pattern: str, split: Split) -> tuple[list[pathlib.Path], tuple[str, ...] | None]:
    """Files of a pattern for a split, sorted, and the splits that the pattern tells apart (None if no `{split}`).

    Raises:
        UserError: no file matches; a split that does not exist, with those that do.
    """
    if "{split}" not in pattern:
        names = None
    else:
        # The part of each matching path that stands where {split} does.
        shape = (
            re.escape(pattern).replace(re.escape("{split}"), "(?P<s>[^/]*)", 1).replace(re.escape("{split}"), "(?P=s)")
        )
        shape = shape.replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
        found = (re.fullmatch(shape, path) for path in glob.glob(pattern.replace("{split}", "*")))
        names = tuple(sorted({match["s"] for match in found if match}))
        if names and split.name not in names:
            raise unknown_split(split.name, names, pattern)
    chosen = pattern.replace("{split}", split.name)
    paths = [pathlib.Path(p) for p in sorted(glob.glob(chosen, recursive=True))] or [pathlib.Path(chosen)]
    if not paths[0].exists():
        kind = "matches no file" if glob.has_magic(chosen) else "does not exist"
        raise UserError(f"data.source: {chosen} {kind}")
    return paths, names


def stamp(paths: list[pathlib.Path]) -> list[list[Any]]:
    """Path, size and time of change of files: what tells one version of them from another."""
    return [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]


def unknown_split(name: str, known: tuple[str, ...], title: str) -> UserError:
    return UserError(
        f"data.split: unknown split {name!r} of {title}{nearest(name, known)} (it has: {', '.join(known)})"
    )


# ---- joining and choosing


class Join:
    """Two or more sources side by side, row by row."""

    def __init__(self, sources: list[Source]):
        self.sources = sources

    def fingerprint(self, split: Split) -> Any:
        return [source.fingerprint(split) for source in self.sources]

    def table(self, split: Split) -> Table:
        tables = [source.table(Split(split.name)) for source in self.sources]
        owners: dict[str, list[Table]] = {}
        for table in tables:
            for name in table.names:
                owners.setdefault(name, []).append(table)

        def get(name: str) -> Column:
            found = owners[name.partition("@")[0]]
            if len(found) > 1:
                raise UserError(f"data.keys: column {name!r} is in more than one of the joined sources")
            return found[0].get(name)

        splits = [t.splits for t in tables if t.splits is not None]
        classes = [t.classes for t in tables if t.classes is not None]
        return Table(tuple(owners), get, splits[0] if splits else None, classes[0] if classes else None)


DEFAULT_KEYS = ("image", "label", "text", "audio")


def choose_keys(part: Part, split: str) -> dict[str, str] | None:
    """The columns that `part.keys` asks for in a split; None: the default ones."""
    if not any(isinstance(v, dict) for v in part.keys.values()):
        return part.keys or None
    if split not in part.keys:
        raise unknown_split(split, tuple(part.keys), f"data.keys for {part.source}")
    return part.keys[split]


def fingerprint(part: Part) -> Any:
    """A JSON value that changes when the rows of a part do: it names the caches made from them."""
    split = parse_split(part.split)
    return [
        open_source(part.source).fingerprint(split),
        dataclasses.asdict(split),
        choose_keys(part, split.name),
        part.where,
    ]


def read(part: Part) -> Rows:
    """The columns and rows that a part asks for.

    Rows are those of the split, then those that pass the filter, then the slice.

    Raises:
        UserError: unknown split or column, columns of unequal length, no row left.
    """
    split, title = parse_split(part.split), f"{part.source} [{part.split}]"
    table = open_source(part.source).table(split)
    keys = choose_keys(part, split.name)
    named = keys is not None
    if keys is None:
        keys = {name: name for name in DEFAULT_KEYS if name in table.names}
        if not keys:
            raise UserError(
                f"data.keys: {part.source} has no column called {', '.join(DEFAULT_KEYS)}; say which of its columns to "
                f"use (it has: {', '.join(table.names)})"
            )
    columns = {key: _column(table, name, f"data.keys.{key}", part.source) for key, name in keys.items()}
    rows = _common_length(columns, part.source)

    keep = np.ones(rows, bool)
    if table.splits is None and "split" in table.names:
        values = _values(table, "split", rows, part.source)
        if split.name != "all":
            keep &= values == split.name
            if not keep.any():
                raise unknown_split(split.name, tuple(sorted(set(values.tolist()))), part.source)
    elif table.splits is None and split.name not in ("train", "all") and not (named and split.name in part.keys):
        raise UserError(
            f"data.split: unknown split {split.name!r}: {part.source} has no splits, only 'train' (or 'all') and "
            f"slices such as 'train[90%:]'; or give data.keys per split"
        )
    for name, wanted in part.where.items():
        _check_column(table, name, f"data.where.{name}", part.source)
        values = _values(table, name, rows, part.source)
        options = wanted if isinstance(wanted, list | tuple) else [wanted]
        keep &= np.array([any(v == option for option in options) for v in values.tolist()], bool)
    index = np.flatnonzero(keep)
    if not table.sliced:
        index = index[split.bounds(len(index))]
    if not len(index):
        raise UserError(f"data.split: {title} is empty" + (f" under data.where {part.where}" if part.where else ""))
    return Rows(columns, index, table.classes, title, table.where)


def _check_column(table: Table, name: str, key: str, source: str) -> None:
    for piece in name.split("@"):
        if piece not in table.names:
            raise UserError(
                f"{key}: unknown column {piece!r} of {source}{nearest(piece, table.names)} "
                f"(it has: {', '.join(table.names)})"
            )


def _column(table: Table, name: Any, key: str, source: str) -> Column:
    if not isinstance(name, str):
        raise UserError(f"{key}: got {name!r}, must be the name of a column (it has: {', '.join(table.names)})")
    _check_column(table, name, key, source)
    return table.get(name)


def _values(table: Table, name: str, rows: int, source: str) -> np.ndarray:
    column = table.get(name)
    if isinstance(column, Blobs) or len(column) != rows:
        raise UserError(f"data.where: column {name!r} of {source} does not give one value for each of the {rows} rows")
    if isinstance(column, list):
        values = np.empty(len(column), object)  # a list of lists must not become a table
        values[:] = column
        return values
    return column


def _common_length(columns: dict[str, Column], source: str) -> int:
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {n} rows" for key, n in lengths.items())
        raise UserError(f"data.source: columns of {source} differ in length: {told}")
    return next(iter(lengths.values()))
