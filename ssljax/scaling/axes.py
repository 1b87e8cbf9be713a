"""Axes of a study: the values that config keys take over its runs."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ssljax.base.errors import UserError, nearest, shown
from ssljax.base.hashing import name_id
from ssljax.config import parse_value

Changes = dict[str, Any]  # {dotted key: value}

_FORM = "must be KEY=VALUE,VALUE,..."
_DIGITS = 4  # significant digits of a drawn number, so that names and configs show the value itself


def parse_values(text: str, option: str) -> tuple[str, tuple[Any, ...]]:
    """Parses "key=value,value,..." to (key, values). Commas inside brackets and quotes do not separate values.

    Args:
        text: the text.
        option: option or key that the user gave, for messages.

    Raises:
        UserError: the text has another form, or no values.

    >>> parse_values("model.depths=(1,2),(2,4)", "--grid")
    ('model.depths', ((1, 2), (2, 4)))
    """
    key, equals, rest = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{option}: got {shown(text)}, {_FORM}")
    parts = [part.strip() for part in _split(rest)]
    if parts == [""]:
        raise UserError(f"{option}: {key.strip()} has no values; {_FORM}")
    if "" in parts:
        raise UserError(f"{option}: got {shown(text)}, which has an empty value; {_FORM}")
    return _key(key), tuple(parse_value(part) for part in parts)


def _key(key: str) -> str:
    """Returns a dotted key without the prefix that overrides have, `config.`."""
    return key.strip().removeprefix("--").removeprefix("config.")


def _split(text: str) -> list[str]:
    """Splits a text at its commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A distribution from which a random search draws.

    Attributes:
        name: "uniform", "loguniform" (bounds), "integers" (bounds, both included) or "choice" (values).
        values: the two bounds, or the values.
    """

    name: str
    values: tuple[Any, ...]

    def draw(self, key: str, index: int, seed: int) -> Any:
        """Returns the value of run `index`, a function of (seed, key, index): more runs or keys change no value."""
        random = np.random.default_rng([seed, name_id(key), index])
        if self.name == "choice":
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.name == "integers":
            return int(random.integers(low, high + 1))
        share = random.random()
        if self.name == "loguniform":
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return min(max(float(f"{value:.{_DIGITS}g}"), float(low)), float(high))


_NAMES = ("uniform", "loguniform", "integers", "choice")


def parse_distribution(text: str, path: str) -> Distribution:
    """Parses a distribution such as "loguniform(1e-4,1e-2)", "uniform(0,1)", "integers(1,8)" or "choice(adamw,lion)".

    Raises:
        UserError: the name is unknown, or the values do not fit it.
    """
    match = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", text) if isinstance(text, str) else None
    if match is None or match[1] not in _NAMES:
        close = nearest(match[1], _NAMES) if match else ""
        raise UserError(f"{path}: got {shown(text)}{close}, must be one of {', '.join(n + '(...)' for n in _NAMES)}")
    name, values = match[1], tuple(parse_value(part.strip()) for part in _split(match[2]) if part.strip())
    if name == "choice":
        if not values:
            raise UserError(f"{path}: got {shown(text)}, which has no values; write choice(a,b)")
        return Distribution(name, values)
    kinds = int if name == "integers" else int | float
    if len(values) != 2 or not all(isinstance(v, kinds) and not isinstance(v, bool) for v in values):
        number = "integers" if name == "integers" else "numbers"
        raise UserError(f"{path}: got {shown(text)}, must have two {number}: {name}(lowest,highest)")
    if values[0] >= values[1] or (name == "loguniform" and values[0] <= 0):
        above = "0 < lowest < highest" if name == "loguniform" else "lowest < highest"
        raise UserError(f"{path}: got {shown(text)}, must have {above}")
    return Distribution(name, values)


@dataclasses.dataclass(frozen=True)
class Axes:
    """The changes of the runs of a study: the product of a grid, of keys that change together, of draws, and of seeds.

    Attributes:
        grid: (key, values) pairs, whose product is taken.
        together: (key, values) pairs of one length; the keys take their first values together, then their second ones.
        random: (key, distribution) pairs; each of `draws` runs draws all of them.
        draws: number of draws.
        draw_seed: seed of the draws.
        seeds: number of seeds for each other combination.
    """

    grid: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    together: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    random: tuple[tuple[str, Distribution], ...] = ()
    draws: int = 0
    draw_seed: int = 0
    seeds: int = 1

    def check(self) -> None:
        """Raises UserError if a key is given twice, has no values, or the axes do not fit each other."""
        keys = [key for key, _ in (*self.grid, *self.together, *self.random)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UserError(f"{twice[0]}: is an axis twice; give all of its values at once")
        for key, values in (*self.grid, *self.together):
            if not values:
                raise UserError(f"{key}: the axis has no values")
        lengths = {key: len(values) for key, values in self.together}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{key} has {count}" for key, count in lengths.items())
            raise UserError(f"--zip: keys that change together must have equally many values ({counts})")
        if self.random and not self.draws:
            raise UserError("--runs: missing; a random search needs the number of its runs")
        if self.draws and not self.random:
            raise UserError(f"--runs: got {self.draws}, but no key is drawn; give --random KEY=loguniform(a,b)")
        if self.seeds > 1 and "seed" in keys:
            raise UserError("--seeds: got several, but `seed` is an axis too; give one of them")

    def changes(self, first_seed: int) -> Iterator[Changes]:
        """Yields the changes of each run, in the order of the axes; seeds vary fastest, from `first_seed` on."""
        grid = [[(key, value) for value in values] for key, values in self.grid]
        rows: Sequence[Mapping[str, Any]] = [
            dict(zip([key for key, _ in self.together], row)) for row in zip(*(values for _, values in self.together))
        ]
        draws = [
            {key: distribution.draw(key, index, self.draw_seed) for key, distribution in self.random}
            for index in range(self.draws)
        ]
        seeds = [{"seed": first_seed + i} for i in range(self.seeds)] if self.seeds > 1 else [{}]
        for combination, row, drawn, seed in itertools.product(
            itertools.product(*grid), rows or [{}], draws or [{}], seeds
        ):
            yield {**dict(combination), **row, **drawn, **seed}


def in_order(changes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the changes with names and types of groups first, then sources: they drop keys of what they replace."""

    def rank(key: str) -> int:
        last = key.rpartition(".")[2]
        return 0 if last in ("name", "type") else 1 if last == "source" else 2

    return sorted(changes.items(), key=lambda item: rank(item[0]))
