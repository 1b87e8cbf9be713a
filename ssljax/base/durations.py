"""Lengths of training, in whatever unit the paper gives them: steps, epochs, examples, tokens, a share of the run."""

import dataclasses
import math
import re
from fractions import Fraction

from ssljax.base.errors import UserError

Duration = int | str  # the type hint of a configurable duration

FORMS = "an integer (steps) or a text such as '1.5k steps', '90 epochs', '10M examples', '2B tokens', '5%'"

_PATTERN = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:%|([kMBT]?)\s*(step|epoch|example|token)s?)")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """What turns a duration into steps; None where it is not known (or has no meaning, as tokens of images)."""

    batch_size: int  # examples a step, over all processes
    dataset_size: int | None = None  # examples an epoch
    tokens_per_example: int | None = None
    total_steps: int | None = None  # of the whole run


def parse(value: Duration, key: str) -> tuple[Fraction, str]:
    """(amount, unit) of a duration; the unit is one of step, epoch, example, token, percent.

    Raises:
        ValueError: "key: what is wrong", the form that a configuration's `validate` passes on.
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
    """The number of steps of a duration, rounded up: 90 epochs show every example at least 90 times.

    Args:
        value: an int (steps) or a text, see `FORMS`.
        lengths: batch size and whatever else the units need.
        key: dotted config key, for messages.

    Raises:
        UserError: a malformed duration, or a unit whose size is not known here.
    """
    try:
        amount, unit = parse(value, key)
    except ValueError as error:
        raise UserError(str(error)) from error

    def known(size: int | None, what: str) -> int:
        if size is None:
            raise UserError(f"{key}: got {value!r}, but {what} is not known here; give it in steps or another unit")
        return size

    if unit == "percent":
        amount = amount / 100 * known(lengths.total_steps, "the total number of steps")
    elif unit != "step":
        examples = {
            "epoch": lambda: amount * known(lengths.dataset_size, "the size of the dataset"),
            "example": lambda: amount,
            "token": lambda: amount / known(lengths.tokens_per_example, "the number of tokens an example"),
        }[unit]()
        amount = examples / lengths.batch_size
    return math.ceil(amount)


def depends_on_total(value: Duration) -> bool:
    """Whether a duration is a share of the run, so that a longer run would start differently."""
    return isinstance(value, str) and value.strip().endswith("%")
