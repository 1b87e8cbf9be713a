"""Errors for users: one line with the location, the problem, and the valid input."""

import difflib
import reprlib
import traceback
from collections.abc import Iterable
from typing import Any

_LONGEST = 2000  # characters of a message


class UserError(Exception):
    """A mistake in the user's input (a key, a value, a file). The command line prints one line, exit code 2.

    A message of several lines becomes one line, and characters that cannot be printed are written as escapes.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class DivergedError(UserError):
    """A run whose steps are no longer finite."""


def one_line(text: str) -> str:
    """Returns a text as one printable line of at most 2,000 characters."""
    line = " ".join(part.strip() for part in text.splitlines()) if len(text.splitlines()) > 1 else text
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 300]} ... {line[-280:]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)[:_LONGEST]


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 120
        self.maxlevel, self.maxlist, self.maxtuple, self.maxset, self.maxdict = 4, 12, 12, 12, 8


def shown(value: Any) -> str:
    """Returns the `repr` of a value for a message, with the middle of long texts and the end of long lists left out."""
    try:
        return _Short().repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a {type(value).__name__}"


def located(error: BaseException) -> str:
    """Returns an exception of a user's code with its line: "NameError: name 'x' is not defined (c.py:3)"."""
    frames = traceback.extract_tb(error.__traceback__)
    place = "" if isinstance(error, SyntaxError) or not frames else f" ({frames[-1].filename}:{frames[-1].lineno})"
    return f"{type(error).__name__}: {error}{place}"


def closest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`; None if none is similar."""
    close = difflib.get_close_matches(name[:100], list(names), n=1, cutoff=0.6)
    return close[0] if close else None


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a message, `"; did you mean 'x'?"` with the most similar of `names`; `""` if none is similar."""
    close = closest(name, names)
    return f"; did you mean {close!r}?" if close else ""
