"""Values of a config file as plain Python values, which JSON can hold."""

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
import numpy as np

from ssljax.base.errors import UserError, shown

_DEEPEST = 32  # levels of groups and lists
_LONGEST_RANGE = 100_000
_INTEGERS = 2**63  # the arrays and files that hold integers have 64 bits


def plain(value: Any, path: str = "") -> Any:
    """Returns a copy of a value that consists of plain Python values.

    Groups (`ConfigDict` or another mapping) become dictionaries, references their values, NumPy scalars numbers,
    arrays and ranges lists, sets sorted lists, paths texts. Lists, tuples and the entries of groups are converted in
    the same way. A class becomes "module:Class". Instances of dataclasses are returned unchanged.

    Args:
        value: a value of a config.
        path: dotted path of the key, for messages.

    Raises:
        UserError: a name that is not a text, a required placeholder without a value, a number that is not finite or
            has more than 64 bits, groups that are nested too deeply, or another kind of value.
    """
    return _plain(value, path, 0)


def dotted(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns {dotted key: value} of the leaves of nested mappings; an empty mapping is a leaf."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= dotted(value, f"{path}{key}.") if isinstance(value, Mapping) and value else {f"{path}{key}": value}
    return out


def _plain(value: Any, path: str, depth: int) -> Any:
    if depth > _DEEPEST:
        raise UserError(f"{path[:60]}...: nested more than {_DEEPEST} levels deep")
    if isinstance(value, ml_collections.FieldReference):
        return _plain(_dereferenced(value, path), path, depth + 1)
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), path, depth + 1)
    if isinstance(value, ml_collections.ConfigDict):
        return _group(value.items(preserve_field_references=True), path, depth)
    if isinstance(value, Mapping):
        return _group(value.items(), path, depth)
    if isinstance(value, set | frozenset):
        value = sorted(
            value, key=lambda item: (type(item).__name__, item if isinstance(item, str | int | float) else 0)
        )
    if isinstance(value, range) and len(value) <= _LONGEST_RANGE:
        value = list(value)
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return _single(value, path)


def _group(items: Iterable[tuple[Any, Any]], path: str, depth: int) -> dict[str, Any]:
    out = {}
    for key, value in items:
        if not isinstance(key, str):
            raise UserError(f"{path or 'config'}: has the key {shown(key)} ({type(key).__name__}), must be a text")
        name = str.__str__(key)
        out[name] = _plain(value, f"{path}.{name}" if path else name, depth + 1)
    return out


def _dereferenced(reference: Any, path: str) -> Any:
    try:
        return reference.get()
    except Exception as error:
        if isinstance(error, ml_collections.config_dict.RequiredValueError):
            raise UserError(f"{path}: missing; the config has a placeholder here that must be given") from error
        raise UserError(f"{path}: cannot be computed: {type(error).__name__}: {error}") from error


def _single(value: Any, path: str) -> Any:
    """Returns a value that has no parts."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enumeration of texts prints its own name instead
    if isinstance(value, int):
        if not -_INTEGERS <= value < _INTEGERS:
            raise UserError(f"{path}: got an integer of {value.bit_length()} bits, must have at most 64")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{path}: got {value!r}, must be a finite number")
        return float(value)
    if isinstance(value, os.PathLike) and isinstance(text := os.fspath(value), str):
        return text
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return value
    if isinstance(value, type):
        if "." in value.__qualname__:
            raise UserError(
                f"{path}: got the class {value.__qualname__}, must be one at the top of a module or notebook"
            )
        return f"{value.__module__}:{value.__qualname__}"
    raise UserError(f"{path}: got {shown(value)} ({type(value).__name__}), must be a number, a text, a list or a group")
