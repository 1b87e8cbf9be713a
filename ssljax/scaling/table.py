"""Tables of runs: read, renamed, completed and checked before anything is fitted."""

import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssljax.base.errors import UserError, nearest, shown
from ssljax.scaling.laws.law import Column, Law
from ssljax.scaling.listing import run_columns

LISTED = 5  # rows that a message names
EMPTY = {"", "nan", "na", "none", "null"}
RATIO = 3.0  # flops / (6 params tokens) within this factor of 1 is ordinary: attention, embeddings, other formulas
ASK = "is one of the columns in millions or billions?"
HELD_OUT = "loss/loss"  # metric of the evaluation of the held-out loss, under its usual name
TOKENS_PER_PARAMETER = (1e-3, 1e5)


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        columns: {name: [n]}: texts of a file, or the values that were passed.
        source: a name for messages.
        rows: [n], the number of each row in messages: the line of a file, or the index from 0.
        notes: what was changed or looks wrong, for the warnings of a fit.
    """

    columns: Mapping[str, Sequence[Any]]
    source: str
    rows: Sequence[int]
    notes: tuple[str, ...] = ()


def read(table: Any) -> Table:
    """Returns a table from a CSV file with a header, a study, a mapping {name: values}, a list of rows, or a frame.

    Args:
        table: path of a CSV file, of a store of `ssljax sweep`, or of a study in it (STORE/STUDY); or values.

    Raises:
        UserError: the file cannot be read, has no header or no rows, or columns differ in length.
    """
    if isinstance(table, Table):
        return table
    if isinstance(table, str | os.PathLike):
        path = pathlib.Path(table)
        return _read_store(path) if path.is_dir() else _read_csv(path)
    if isinstance(table, Sequence) and table and all(isinstance(row, Mapping) for row in table):
        names = list(dict.fromkeys(name for row in table for name in row))
        table = {name: [row.get(name) for row in table] for name in names}
    if not hasattr(table, "keys"):
        raise UserError(f"table: got {shown(table)}, must be the path of a CSV file or a mapping of columns")
    columns = {str(name): list(table[name]) for name in list(table.keys())}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"table: columns must have one length, got {shown(lengths)}")
    return Table(columns, "table", range(next(iter(lengths.values()))))


def _read_store(path: pathlib.Path) -> Table:
    """Reads the runs of a study that are done. `loss` is the held-out one, where the runs have an evaluation `loss`."""
    columns = run_columns(path)
    trunk = columns.pop("trunk", None) or [None] * len(columns["run"])
    whole = [i for i, step in enumerate(trunk) if step is None]
    kept = [i for i in whole if columns["state"][i] == "done"]
    if not kept:
        raise UserError(f"{path}: has no run that is done; `ssljax sweep --workdir STORE` trains them")
    notes = []
    if segments := len(trunk) - len(whole):
        notes.append(f"{segments} segments of trunks are left out: they are beginnings of other runs")
    if others := len(whole) - len(kept):
        notes.append(f"{others} of {len(whole)} runs are not done and left out")
    held_out = columns.get(HELD_OUT)
    if held_out and all(held_out[i] is not None for i in kept):
        columns["loss"] = held_out
        notes.append(f"loss is {HELD_OUT}, on held-out data")
    else:
        notes.append("loss is the training loss at the last log point, since not all runs have an evaluation `loss`")
    return Table({name: [column[i] for i in kept] for name, column in columns.items()}, str(path), kept, tuple(notes))


def _read_csv(path: pathlib.Path) -> Table:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
        readings = [_lines(text, delimiter) for delimiter in ",;\t"]
        whole = (lines for lines in readings if len({len(cells) for _, cells in lines}) == 1 < len(lines[0][1]))
        lines = next(whole, readings[0])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV file ({error})") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    if len(lines) < 2:
        raise UserError(f"{path}: must have a header and at least one row")
    header = [cell.strip() for cell in lines[0][1]]
    if double := {name for name in header if header.count(name) > 1}:
        raise UserError(f"{path}: the header names {shown(sorted(double)[0])} twice")
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {number}: has {len(cells)} cells, the header has {len(header)}")
    columns = {name: [cells[i].strip() for _, cells in lines[1:]] for i, name in enumerate(header)}
    return Table(columns, str(path), [number for number, _ in lines[1:]])


def _lines(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Returns (number of the line, cells) of the lines of a CSV file that are not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]


def renamed(table: Table, columns: Mapping[str, str]) -> Table:
    """Returns the table with columns under other names.

    Args:
        columns: {name of a law: name in the table}; a name such as "1-accuracy" is one minus the column after it.

    Raises:
        UserError: the table has no such column.
    """
    out = dict(table.columns)
    for name, own in columns.items():
        if own not in table.columns and own.startswith("1-"):
            out[name] = list(1 - numbers(table, own[2:]))
        elif own not in table.columns:
            raise UserError(_absent(table, own))
        else:
            out[name] = table.columns[own]
    kept = tuple(note for note in table.notes if not note.startswith(tuple(f"{name} is " for name in columns)))
    return dataclasses.replace(table, columns=out, notes=kept)


def _absent(table: Table, name: str) -> str:
    names = list(table.columns)
    cased = {own.lower(): own for own in names}
    hint = nearest(name, names) or nearest(cased.get(name.lower(), ""), names)
    return f"{table.source}: has no column {name!r}{hint} (columns: {', '.join(names)})"


def numbers(table: Table, name: str) -> np.ndarray:
    """Returns a column as float64 [n]; empty cells are NaN.

    Raises:
        UserError: no such column, or a cell that is no number.
    """
    if name not in table.columns:
        raise UserError(_absent(table, name))
    out = np.empty(len(table.rows))
    for i, (row, value) in enumerate(zip(table.rows, table.columns[name])):
        if value is None or (isinstance(value, str) and value.strip().lower() in EMPTY):
            out[i] = np.nan
            continue
        try:
            out[i] = float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"{table.source}, row {row}, column {name!r}: got {shown(value)}, must be a number"
            ) from None
    return out


def labels(table: Table, name: str) -> list[str]:
    """Returns a column as texts.

    Raises:
        UserError: no such column.
    """
    if name not in table.columns:
        raise UserError(_absent(table, name))
    return [str(value) for value in table.columns[name]]


def _completed(table: Table, names: Sequence[str]) -> Table:
    """Adds what a law needs and the table lacks but determines: tokens, params, flops or budget, by 6 params tokens."""
    have = set(table.columns)
    if "tokens" in names and "tokens" not in have and {"flops", "params"} <= have:
        values, note = numbers(table, "flops") / (6 * numbers(table, "params")), "tokens = flops / (6 params)"
        return _with(table, "tokens", values, note)
    if "params" in names and "params" not in have and {"flops", "tokens"} <= have:
        values, note = numbers(table, "flops") / (6 * numbers(table, "tokens")), "params = flops / (6 tokens)"
        return _with(table, "params", values, note)
    if "flops" in names and "flops" not in have and {"params", "tokens"} <= have:
        values, note = 6 * numbers(table, "params") * numbers(table, "tokens"), "flops = 6 params tokens"
        return _with(table, "flops", values, note)
    if "budget" in names and "budget" not in have:
        if "flops" in have:
            return _with(table, "budget", numbers(table, "flops"), "budget = flops")
        if {"params", "tokens"} <= have:
            values = 6 * numbers(table, "params") * numbers(table, "tokens")
            return _with(table, "budget", values, "budget = 6 params tokens")
    return table


def _with(table: Table, name: str, values: np.ndarray, note: str) -> Table:
    added = f"{note}, since the table has no column {name!r}"
    return dataclasses.replace(table, columns={**table.columns, name: list(values)}, notes=(*table.notes, added))


@dataclasses.dataclass(frozen=True)
class Checked:
    """The part of a table that a law reads, ready for a fit.

    Attributes:
        columns: {name: [n]} of the inputs.
        observed: [T n], the outputs one after another.
        rows: [n], numbers of the rows in messages.
        kept: [n], indices of the rows in the table.
        notes: warnings.
    """

    columns: dict[str, np.ndarray]
    observed: np.ndarray
    rows: list[int]
    kept: np.ndarray
    notes: tuple[str, ...]


def checked(table: Table, law: Law) -> Checked:
    """Returns what a law reads of a table.

    Rows with an empty or NaN cell in a column that the law reads are left out, with a warning. Rows that occur twice
    stay, with a warning.

    Raises:
        UserError: a missing column, a cell that is no number, a value out of range, a constant column, too few rows.
    """
    declared = [*law.inputs, *law.outputs]
    table = _completed(table, [column.name for column in declared])
    values = {column.name: numbers(table, column.name) for column in declared}
    missing = np.isnan(np.stack(list(values.values()))).any(0)
    notes = list(table.notes)
    if missing.any():
        left = [row for row, gone in zip(table.rows, missing) if gone]
        which = ", ".join(name for name, value in values.items() if np.isnan(value).any())
        notes.append(f"{len(left)} rows without a number in {which} are left out (rows {_listed(left)})")
    kept = np.flatnonzero(~missing)
    rows = [table.rows[int(i)] for i in kept]
    values = {name: value[kept] for name, value in values.items()}
    for column in declared:
        _check_range(table.source, column, values[column.name], rows)
    columns = {column.name: values[column.name] for column in law.inputs}
    count = law.count(columns)
    if len(rows) <= count:
        raise UserError(
            f"{table.source}: {len(rows)} rows are too few for {_name(law)}, "
            f"which has {count} parameters: at least {count + 1} are needed"
        )
    for column in law.inputs:
        _check_distinct(table.source, column, values[column.name], _name(law))
    observed = np.concatenate([values[column.name] for column in law.outputs])
    if refused := law.refused(columns, observed):
        raise UserError(f"{table.source}, row {rows[refused[0]]}: {refused[1]}")
    notes += _duplicates(values, rows) + _units(table, values, kept)
    return Checked(columns, observed, rows, kept, tuple(notes))


def _name(law: Law) -> str:
    return getattr(law, "_registry_name", type(law).__name__)


def _listed(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:LISTED])) + (f" and {len(rows) - LISTED} more" if len(rows) > LISTED else "")


def _check_range(source: str, column: Column, values: np.ndarray, rows: Sequence[int]) -> None:
    low = values <= column.lower if column.open else values < column.lower
    wrong = np.flatnonzero(low | (values > column.upper) | ~np.isfinite(values))
    if len(wrong):
        sign = ">" if column.open else ">="
        needed = "finite" if np.isinf(column.lower) else f"{sign} {column.lower:g}"
        if not np.isfinite(values[wrong[0]]) and not np.isinf(column.lower):
            needed = f"finite and {needed}"
        needed += f" and <= {column.upper:g}" if np.isfinite(column.upper) else ""
        more = f" (and in {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
        raise UserError(
            f"{source}, row {rows[wrong[0]]}, column {column.name!r}: got {values[wrong[0]]:g}, must be {needed}{more}"
        )


def _check_distinct(source: str, column: Column, values: np.ndarray, law: str) -> None:
    different = len(np.unique(values))
    if different < column.distinct:
        held = f"is {values[0]:g} in all rows" if different == 1 else f"has {different} different values"
        raise UserError(
            f"{source}: column {column.name!r} {held}; {law} needs at least {column.distinct} different ones"
        )


def _duplicates(values: Mapping[str, np.ndarray], rows: Sequence[int]) -> list[str]:
    """A warning if rows agree in all columns that the law reads."""
    whole = np.stack(list(values.values()), 1)
    _, first, counts = np.unique(whole, axis=0, return_index=True, return_counts=True)
    double = int((counts - 1).sum())
    if not double:
        return []
    example = first[np.argmax(counts > 1)]
    same = [rows[int(i)] for i in np.flatnonzero((whole == whole[example]).all(1))]
    return [f"{double} rows repeat another row (such as rows {_listed(same)}); they count as further runs"]


def _units(table: Table, values: Mapping[str, np.ndarray], kept: np.ndarray) -> list[str]:
    """Warnings if columns seem to be in different units."""
    if not {"params", "tokens"} <= set(values):
        return []
    if table.columns.get("examples") == table.columns.get("tokens"):  # an example has many tokens, as of images
        return []
    notes = []
    for name in ("flops", "budget"):
        if name in table.columns and not any(
            note.startswith(("tokens =", "params =", "flops =")) for note in table.notes
        ):
            ratio = np.nanmedian(numbers(table, name)[kept] / (6 * values["params"] * values["tokens"]))
            if not 1 / RATIO < ratio < RATIO:
                notes.append(f"{name} / (6 params tokens) is {ratio:.3g}, not about 1: {ASK}")
    ratio = np.median(values["tokens"] / values["params"])
    if not TOKENS_PER_PARAMETER[0] < ratio < TOKENS_PER_PARAMETER[1]:
        notes.append(f"tokens / params is {ratio:.3g}: {ASK}")
    return notes
