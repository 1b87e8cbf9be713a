"""Names of splits and their slices: `train`, `train[:1000]`, `train[10%:]`, `train[-20%:]`."""

import re
from dataclasses import dataclass

from ssljax.base.errors import UserError

_PATTERN = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>-?\d{1,18}%?)?:(?P<stop>-?\d{1,18}%?)?\])?")


@dataclass(frozen=True)
class Split:
    """The name of a split and the bounds of its slice: texts such as `"100"` or `"-20%"`, or None."""

    name: str
    start: str | None = None
    stop: str | None = None

    @property
    def whole(self) -> bool:
        """True if the split is not sliced."""
        return self.start is None and self.stop is None

    def bounds(self, rows: int) -> slice:
        """Returns the slice of a split of `rows` rows; percentages are rounded down to whole rows."""
        return slice(*(None if b is None else _count(b, rows) for b in (self.start, self.stop)))


def parse_split(text: str) -> Split:
    """Parses the name of a split or a slice of it.

    Raises:
        UserError: the text is neither a name nor a slice.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UserError(f"data.split: got {text!r}, must be a name or a slice such as 'train[:1000]' or 'train[10%:]'")
    return Split(match["name"], match["start"], match["stop"])


def _count(bound: str, rows: int) -> int:
    if not bound.endswith("%"):
        return int(bound)
    percent = int(bound[:-1])
    # Rounded towards the start for either sign, so that [:80%] and [80%:], or [:-20%] and [-20%:], are complementary.
    return percent * rows // 100 if percent >= 0 else -(-percent * rows // 100) or rows
