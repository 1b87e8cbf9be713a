"""Errors for users: one line with the location, the problem, and the valid input."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the user's input (a key, a value, a file). The command line prints one line, exit code 2."""


def closest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`; None if none is similar."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return close[0] if close else None


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a message, `"; did you mean 'x'?"` with the most similar of `names`; `""` if none is similar."""
    close = closest(name, names)
    return f"; did you mean {close!r}?" if close else ""
