"""Durations of training in steps, epochs, examples, tokens, or as a share of the run."""

import dataclasses
import math
import re
from fractions import Fraction

from ssljax.base.errors import UserError

Duration = int | str  # type of a configuration key that is a duration; see `FORMS`

FORMS = "an integer (steps) or a text such as '1.5k steps', '90 epochs', '10M examples', '2B tokens', '5%'"

LARGEST = 2**31 - 1  # number of steps, which the state counts as int32

_PATTERN = re.compile(r"(\d{1,18}(?:\.\d{1,18})?(?:e\d{1,2})?)\s*(?:%|([kMBT]?)\s*(step|epoch|example|token)s?)")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """The lengths that convert a duration to steps; None: unknown or not defined (tokens of images)."""

    batch_size: int  # examples per step, over all processes
    dataset_size: int | None = None  # examples per epoch
    tokens_per_example: int | None = None
    total_steps: int | None = None  # steps of the whole run


def parse(value: Duration, key: str) -> tuple[Fraction, str]:
    """Parses a duration.

    Args:
        value: an int (steps) or a text, see `FORMS`.
        key: config key, for messages.

    Returns:
        (amount, unit); the unit is "step", "epoch", "example", "token" or "percent".

    Raises:
        ValueError: a malformed duration; the message begins with `key`, as in `validate` of a configuration.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Fraction(value), "step"
    match = _PATTERN.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{key}: got {value!r}, must be {FORMS}")
    amount, factor, unit = match.groups()
    if unit is None:
        if Fraction(amount) > 100:
            raise ValueError(f"{key}: got {value!r}, must be at most 100%")
        return Fraction(amount), "percent"
    return Fraction(amount) * _FACTORS[factor], unit


def steps(value: Duration, lengths: RunLengths, key: str) -> int:
    """Converts a duration to a number of steps, rounded up, so that 90 epochs show every example at least 90 times.

    Args:
        value: an int (steps) or a text, see `FORMS`.
        lengths: the batch size, and the length that the unit requires.
        key: dotted config key, for messages.

    Raises:
        UserError: a malformed duration, the length that the unit requires is unknown, or it has more steps than int32
            counts.
    """
    try:
        amount, unit = parse(value, key)
    except ValueError as error:
        raise UserError(str(error)) from error

    def required(length: int | None, name: str) -> int:
        if length is None:
            raise UserError(f"{key}: got {value!r}, but {name} is unknown; give it in steps or another unit")
        return length

    if unit == "percent":
        amount = amount / 100 * required(lengths.total_steps, "the total number of steps")
    elif unit != "step":
        examples = {
            "epoch": lambda: amount * required(lengths.dataset_size, "the size of the dataset"),
            "example": lambda: amount,
            "token": lambda: amount / required(lengths.tokens_per_example, "the number of tokens per example"),
        }[unit]()
        amount = examples / lengths.batch_size
    if amount > LARGEST:
        raise UserError(f"{key}: got {value!r}, {float(amount):.3g} steps, must be at most {LARGEST:,}")
    return math.ceil(amount)


def depends_on_total(value: Duration) -> bool:
    """Returns True if a duration is a share of the run, so that its steps depend on the length of the run."""
    return isinstance(value, str) and value.strip().endswith("%")
