"""Tables in pages: each stands between the mark that names the command which measured it and the next end mark."""

import pathlib
from collections.abc import Iterable, Sequence

END = "<!-- end of table -->"


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))


def fill(page: pathlib.Path, command: str, text: str) -> None:
    """Replaces what a page shows of a command.

    Args:
        page: the page.
        command: as the mark of the page has it, such as "benchmarks/plans.py".
        text: Markdown.
    """
    start = f"<!-- table: python {command} -->"
    before, found, rest = page.read_text().partition(start)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"{page}: no place for the table of {command}")
    page.write_text(f"{before}{start}\n\n{text.strip()}\n\n{END}{after}")
