"""Errors that a person caused and a person can mend: one line that says what, where, and what would be right."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave (a key, a value, a file). The command line prints it as one line, exit code 2."""


def nearest(given: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name closest to `given`, or `""` when none is close."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
