"""The table of evaluations on the console."""

from ssljax.report.table import Table


def print_table(table: Table) -> None:
    """Prints a table, and its notes below it, to standard output."""
    import rich.console
    import rich.table

    shown = rich.table.Table(collapse_padding=True, pad_edge=False)
    for i, heading in enumerate(table.columns):
        # In a narrow window cells wrap; the names of evaluations stay whole, since others may begin alike.
        shown.add_column(heading, overflow="fold", no_wrap=i == 0)
    for row in table.rows:
        shown.add_row(*row)
    console = rich.console.Console()
    console.print(shown)
    for note in table.notes:
        console.print(note)
