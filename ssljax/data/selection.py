"""The selection of columns and rows of a source: `keys`, `split`, `where`, and the slice of a split."""

import dataclasses
import functools
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.base.hashing import digest
from ssljax.data.config import SourceConfig
from ssljax.data.order import SLICES, VERSION, RowBlocks, permutation
from ssljax.data.sources import DEFAULT_KEYS, FILE_NAME, Blobs, Column, Table, content_of, open_source, unknown_split
from ssljax.data.splits import Split, parse_split


@dataclass(frozen=True)
class Rows:
    """Selected columns and rows of a table.

    Attributes:
        columns: name in the batch -> column, with all rows of the table.
        index: int64 [N], the selected rows of the table. The number of a row is the `id` of its example.
        classes: names of the classes of the labels, None without names.
        title: source and split, for messages.
        location: row of the table -> its location, for messages.
        blocks: the blocks of the rows of the table, for images; None: rows in any order are read fast.
        names: returns the column `file_name` of the table; None: it has none.
    """

    columns: dict[str, Column]
    index: np.ndarray
    classes: tuple[str, ...] | None
    title: str
    location: Callable[[int], str]
    blocks: RowBlocks | None = None
    names: Callable[[], Sequence[str]] | None = None


def fingerprint(config: SourceConfig, columns: Sequence[str] | None = None) -> Any:
    """Returns a JSON value that changes with the selected rows. Caches of these rows are named after it.

    Args:
        config: the source.
        columns: names of the columns whose rows are meant; None: all that the config selects.
    """
    split = parse_split(config.split)
    keys = _configured_keys(config, split.name)
    if columns is not None and keys:
        keys = {name: column for name, column in keys.items() if name in columns}
    counted = None if split.whole else VERSION  # a slice of files takes them in random order
    return [open_source(config.source).fingerprint(split), dataclasses.asdict(split), keys, config.where, counted]


def same_data(first: SourceConfig, second: SourceConfig, split: str) -> bool:
    """Returns True if two sources give the same rows of a split: one URI, or two that lead to the same files."""
    if first.source == second.source:
        return True
    if first.source.partition(":")[0] != second.source.partition(":")[0]:
        return False
    try:
        a, b = (open_source(part.source).fingerprint(Split(split)) for part in (first, second))
    except UserError:  # one of them has no such split
        return False
    return a == b


def source_title(config: SourceConfig) -> str:
    """Returns source and split, without its slice, as text."""
    return f"{config.source} [{parse_split(config.split).name}]"


def source_content(config: SourceConfig) -> str:
    """Returns a digest that changes with the content of a split, of which all rows count, sliced or not."""
    return digest(content_of(open_source(config.source), Split(parse_split(config.split).name)))


def selected_keys(config: SourceConfig) -> dict[str, str]:
    """Returns name in the batch -> column, without reading any column."""
    split = parse_split(config.split)
    keys = _configured_keys(config, split.name)
    return _default_keys(open_source(config.source).table(split)) if keys is None else keys


def read(config: SourceConfig) -> Rows:
    """Reads the columns and rows of a source.

    The split is taken first, then the filter is applied, then the slice is cut.

    Raises:
        UserError: unknown split or column, columns of different lengths, or no row left.
    """
    split, title = parse_split(config.split), f"{config.source} [{config.split}]"
    table = open_source(config.source).table(split)
    keys = _configured_keys(config, split.name)
    if keys is None:
        keys = _default_keys(table)
        if not keys:
            raise UserError(
                f"data.keys: {config.source} has no column called {', '.join(DEFAULT_KEYS)}; name the columns to use "
                f"(it has: {', '.join(table.names)}){_without_names(config.source)}"
            )
    columns = {key: _column(table, name, f"data.keys.{key}", config.source) for key, name in keys.items()}
    rows = _common_length(columns, config.source)
    index = np.flatnonzero(_in_split(table, split, config, rows) & _passes_filter(table, keys, config, rows))
    if table.lines is None:
        index = np.sort(_arranged(table, index)[split.bounds(len(index))])
    if not len(index):
        raise UserError(f"data.split: {title} is empty" + (f" under data.where {config.where}" if config.where else ""))
    names: Any = functools.partial(table.get, FILE_NAME) if FILE_NAME in table.names else None
    return Rows(columns, index, table.classes, title, table.location, table.blocks, names)


def _arranged(table: Table, index: np.ndarray) -> np.ndarray:
    """Returns rows in the order in which a slice counts them."""
    return index[permutation(len(index), 0, SLICES)(np.arange(len(index)))] if table.by_name else index


def _configured_keys(config: SourceConfig, split: str) -> dict[str, str] | None:
    """Returns the keys that the config gives for a split; None if it gives none."""
    if not any(isinstance(v, dict) for v in config.keys.values()):
        return config.keys or None
    if split not in config.keys:
        raise unknown_split(split, tuple(config.keys), f"data.keys for {config.source}")
    return config.keys[split]


def _default_keys(table: Table) -> dict[str, str]:
    return {name: name for name in DEFAULT_KEYS if name in table.names}


def _in_split(table: Table, split: Split, config: SourceConfig, rows: int) -> np.ndarray:
    """Returns a mask [rows] of the rows of the split.

    If the source has one table for all splits, the column `split` names the split of each row. Without this column, all
    rows are `train`.
    """
    if table.splits is not None or split.name == "all":
        return np.ones(rows, bool)
    if "split" in table.names:
        names = _values(table, "split", rows, config.source)
        if split.name not in names.tolist():
            raise unknown_split(split.name, tuple(sorted(map(str, set(names.tolist())))), config.source)
        return names == split.name
    if split.name != "train" and split.name not in config.keys:
        raise UserError(
            f"data.split: unknown split {split.name!r}: {config.source} has no splits, only 'train' (or 'all') and "
            f"slices such as 'train[90%:]'; or give data.keys per split"
        )
    return np.ones(rows, bool)


def _passes_filter(table: Table, keys: dict[str, str], config: SourceConfig, rows: int) -> np.ndarray:
    """Returns a mask [rows] of the rows that pass the filter `where`.

    Raises:
        UserError: unknown column or class, or a text is compared with a column of numbers, or a number with texts.
    """
    mask = np.ones(rows, bool)
    for name, value in config.where.items():
        key = f"data.where.{name}"
        _check_column(table, name, key, config.source)
        allowed = value if isinstance(value, list) else [value]
        values = _values(table, name, rows, config.source).tolist()
        if table.classes is not None and name in ("label", keys.get("label")):
            allowed = [_class_number(v, table.classes, key) if isinstance(v, str) else v for v in allowed]
        _refuse_other_kinds(allowed, values, key)
        chosen = {(_kind(option), option) for option in allowed}  # in Python, True equals 1
        mask &= np.array([isinstance(v, Hashable) and (_kind(v), v) in chosen for v in values], bool)
    return mask


def _class_number(name: str, classes: tuple[str, ...], key: str) -> int:
    if name not in classes:
        raise UserError(f"{key}: unknown class {name!r}{nearest(name, classes)} (there are: {', '.join(classes)})")
    return classes.index(name)


def _refuse_other_kinds(allowed: list[Any], values: list[Any], key: str) -> None:
    """Raises UserError if a filter asks a column of one kind (numbers) for a value of another (a text, true)."""
    kinds = {_kind(value) for value in values}
    for option in allowed:
        if option is not None and len(kinds) == 1 and _kind(option) not in kinds:
            raise UserError(
                f"{key}: got {option!r}, but the values of the column are others, such as {values[0]!r:.40}"
            )


def _kind(value: Any) -> str:
    """Returns the kind of a value of a column or a filter; values of two kinds are never equal."""
    kinds = {"text": str, "truth": bool | np.bool_, "number": int | float | np.number}
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), "other")


def _check_column(table: Table, name: str, key: str, source: str) -> None:
    for part in name.split("@"):
        if part not in table.names:
            raise UserError(
                f"{key}: unknown column {part!r} of {source}{nearest(part, table.names)} "
                f"(it has: {', '.join(table.names)}){_without_names(source)}"
            )


def _without_names(source: str) -> str:
    """Returns how the columns of a table of values are named, for messages; empty for other sources."""
    found = re.match(r"(csv|tsv):[^#]+$", source)
    return f"; if its first line is no line of names, write {found[1]}:FILE#text,label" if found else ""


def _column(table: Table, name: Any, key: str, source: str) -> Column:
    if not isinstance(name, str):
        raise UserError(f"{key}: got {name!r}, must be the name of a column (it has: {', '.join(table.names)})")
    _check_column(table, name, key, source)
    return table.get(name)


def _values(table: Table, name: str, rows: int, source: str) -> np.ndarray:
    """Returns a column as an array [rows] of single values."""
    column = table.get(name)
    if isinstance(column, Blobs) or len(column) != rows:
        raise UserError(f"data.where: column {name!r} of {source} must have one value for each of the {rows} rows")
    if isinstance(column, np.ndarray):
        return column
    values = np.empty(len(column), object)  # NumPy would turn a list of lists into a matrix
    values[:] = list(column)
    return values


def _common_length(columns: dict[str, Column], source: str) -> int:
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key} has {n} rows" for key, n in lengths.items())
        raise UserError(f"data.source: columns of {source} differ in length: {found}")
    return next(iter(lengths.values()))
