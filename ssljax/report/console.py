"""Tables on the console: of evaluations, and of several runs."""

from typing import TYPE_CHECKING

from ssljax.report.table import Table

if TYPE_CHECKING:
    import rich.table


def print_table(table: Table) -> None:
    """Prints a table, and its notes below it, to standard output.

    If a window is too narrow for the longest words of a table, rows become columns, as many at a time as fit. Rows that
    share a name stay rows.
    """
    import rich.console

    console = rich.console.Console()
    names = [row[0] for row in table.rows]
    if _fits(table.columns, table.rows, console.width) or "" in names or len(set(names)) < len(names):
        parts = [_shown(table.columns, table.rows, whole_names=True)]
    else:
        parts = _turned(table, console.width)
    for part in parts:
        console.print(part)
    for note in table.notes:
        console.print(note)


def _shown(columns: list[str], rows: list[list[str]], whole_names: bool) -> "rich.table.Table":
    import rich.table

    shown = rich.table.Table(collapse_padding=True, pad_edge=False)
    for i, heading in enumerate(columns):
        # In a narrow window cells wrap; the names of evaluations stay whole, since others may begin alike.
        shown.add_column(heading, overflow="fold", no_wrap=whole_names and i == 0)
    for row in rows:
        shown.add_row(*row)
    return shown


def _fits(columns: list[str], rows: list[list[str]], width: int) -> bool:
    """Returns True if the longest words of all columns, with a space and a line each, fit side by side."""
    words = [max(len(word) for cell in cells for word in (cell.split() or [""])) for cells in zip(columns, *rows)]
    return sum(words) + 2 * len(words) + 1 <= width


def _turned(table: Table, width: int) -> "list[rich.table.Table]":
    """Tables with a column for each row, which its first cell names, and a row for each further column."""
    parts: list[rich.table.Table] = []
    rest = table.rows
    while rest:
        count = len(rest)
        while True:
            columns, *rows = ([heading, *(row[i] for row in rest[:count])] for i, heading in enumerate(table.columns))
            if count == 1 or _fits(columns, rows, width):
                break
            count -= 1
        parts.append(_shown(columns, rows, whole_names=False))
        rest = rest[count:]
    return parts
