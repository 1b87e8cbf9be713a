"""Groups of runs that can be trained in one program: runs of one shape, see `stackable`."""

import dataclasses
import json
import logging
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.config import RunConfig
from ssljax.runs.assembly import parts_of
from ssljax.runs.trackers import ONE_RUN_A_PROCESS

log = logging.getLogger(__name__)

GROUPS = ("objective", "optimizer")  # groups of the config whose numbers may vary
SEEDS = ("seed", "data.seed")


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one shape.

    Attributes:
        members: numbers of their configs in the list that was given.
        varied: the keys of the objective and the optimiser in which they differ, such as "optimizer.learning_rate".
    """

    members: tuple[int, ...]
    varied: tuple[str, ...] = ()


def stackable(configs: Sequence[RunConfig]) -> list[Group]:
    """Groups configs by shape, in the order of their first members.

    All keys of the configs of a group are equal, except `seed`, `data.seed`, and numbers of the objective and the
    optimiser (keys that are declared as `float`, without groups inside) for which initialisation and step can be traced
    with an array in place of the number. A number that decides on shapes (`mask_ratio`) or on control flow in Python
    (`mixup`, which 0 switches off) cannot: configs that differ in it are in different groups, and the log says why. So
    are configs of which one has a number and the other None.

    Data of configs that differ in such numbers are opened and described, once for each shape. Nothing is computed on a
    device.

    Args:
        configs: checked configs.
    """
    shapes: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        shapes.setdefault(_shape(config, numbers(config)), []).append(number)
    found = [group for members in shapes.values() for group in _divided(configs, members)]
    return sorted(found, key=lambda group: group.members)


def of_one_shape(one: RunConfig, other: RunConfig) -> bool:
    """Returns True if two configs may be in one group of `stackable`; nothing is opened or traced."""
    return _shape(one, numbers(one)) == _shape(other, numbers(other))


def numbers(config: RunConfig) -> dict[str, float]:
    """Returns the numbers of the objective and the optimiser: {"optimizer.learning_rate": 0.001, ...}."""
    found = {}
    for group in GROUPS:
        part = getattr(config, group)
        hints = typing.get_type_hints(type(part))
        for name in schema.keys(type(part)):
            value = getattr(part, name)
            if isinstance(value, float) and float in (hints[name], *typing.get_args(hints[name])):
                found[f"{group}.{name}"] = value
    return found


def refusals(config: RunConfig, keys: Sequence[str]) -> dict[str, str]:
    """Returns {key: why it cannot vary within a stack} for the keys that cannot; see `stackable`.

    Args:
        config: one of the configs.
        keys: some of `numbers`.

    Raises:
        UserError: the config is wrong.
    """
    parts = parts_of(config)

    def problem(keys: Sequence[str]) -> str:
        try:
            parts.program(keys)
        except Exception as error:  # of whatever type: the objective's own code reads a traced value
            return _reason(error)
        return ""

    together = problem(keys)
    if not together:
        return {}
    parts.program()  # raises an error of the config itself
    alone = {key: reason for key in keys if (reason := problem([key]))}
    return alone or dict.fromkeys(keys, together)


def _reason(error: Exception) -> str:
    if isinstance(error, jax.errors.JAXTypeError):
        return "Python code reads its value, for a shape or for control flow"
    return f"{type(error).__name__} while it is traced"


def _shape(config: RunConfig, free: Mapping[str, Any]) -> str:
    """Returns all keys of a config but its seeds and those of `free`, as text."""
    values = config.to_dict()
    for key in (*SEEDS, *free):
        group, _, name = key.rpartition(".")
        (values[group] if group else values)[name] = "*"
    return json.dumps(values, sort_keys=True)


def _divided(configs: Sequence[RunConfig], members: Sequence[int]) -> list[Group]:
    """Divides configs that are equal except in numbers into groups that differ only in numbers that can vary."""
    first = configs[members[0]]
    if jax.process_count() > 1 or set(first.log.trackers) & set(ONE_RUN_A_PROCESS):
        return [Group((number,)) for number in members]
    varied = _varied(configs, members)
    try:
        refused = refusals(first, varied) if varied else {}
    except UserError:  # each run reports it
        return [Group((number,)) for number in members]
    for key, reason in refused.items():
        log.info("%s: runs with different values are not stacked: %s", key, reason)
    divided: dict[tuple[float, ...], list[int]] = {}
    for number in members:
        own = numbers(configs[number])
        divided.setdefault(tuple(own[key] for key in refused), []).append(number)
    return [Group(tuple(part), _varied(configs, part)) for part in divided.values()]


def _varied(configs: Sequence[RunConfig], members: Sequence[int]) -> tuple[str, ...]:
    """Returns the numbers in which configs differ."""
    values = [numbers(configs[number]) for number in members]
    return tuple(key for key in values[0] if len({own[key] for own in values}) > 1)
