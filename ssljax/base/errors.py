"""Errors that a person caused and a person can mend: one line that says what, where, and what would be right."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a user's input (a key, a value, a file). The command line prints it as one line, exit code 2."""


def closest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`, None if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return close[0] if close else None


def nearest(name: str, names: Iterable[str]) -> str:
    """The hint `"; did you mean 'x'?"` with the most similar of `names`, `""` if none is close."""
    close = closest(name, names)
    return f"; did you mean {close!r}?" if close else ""
