"""Descriptions of configuration keys, made from the dataclasses and printed by `ssljax list keys [GROUP]`."""

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_type_hints

from ssljax import evals
from ssljax.base import schema
from ssljax.base.errors import UserError, nearest
from ssljax.config import RunConfig

_WIDTH = 100


def describe_keys(path: str = "") -> Iterator[str]:
    """Yields the lines that describe a group of keys, the entries of a group chosen by name, or one key.

    Args:
        path: dotted path of a key or a group, "" for the run. A group that is chosen by name is followed by the name:
            "objective.simclr.projector".

    Raises:
        UserError: there is no such key or name.
    """
    cls: type = RunConfig
    done: list[str] = []
    words = path.split(".") if path else []
    while words:
        key = words.pop(0)
        _check(key, schema.keys(cls), "key", done)
        options = schema.groups(cls, key)
        if not options and words:
            raise UserError(f"{'.'.join([*done, key])}: is not a group, so it has no key {words[0]!r}")
        if not options or (len(options) > 1 and not words):
            yield from _entries(cls, key, [*done, key], options) if options else _key(cls, key)
            return
        done.append(key)
        if len(options) > 1:
            _check(words[0], options, "name", done)
        elif words[:1] != list(options):  # a group of one class needs no name
            words.insert(0, next(iter(options)))
        name = words.pop(0)
        cls = options[name]
        done += [name] if name else []
    yield from _group(cls, ".".join(done) or "a run")


def describe_config(config: RunConfig) -> Iterator[str]:
    """Yields the lines that describe the keys that a config has, with their values, under their paths.

    Groups chosen by name have the keys of that name only. A value that is not the default is followed by the default.
    """
    yield from _values(config, "")


def _values(group: Any, path: str) -> Iterator[str]:
    """Yields the lines of the plain keys of a group, then those of its groups."""
    cls, groups = type(group), {}
    for key in schema.keys(cls):
        value, name = getattr(group, key), f"{path}{key}"
        value = evals.build(value) if cls is RunConfig and key == "evals" else value
        if dataclasses.is_dataclass(value):
            groups[name] = value
        elif isinstance(value, Mapping) and any(map(dataclasses.is_dataclass, value.values())):
            groups |= {f"{name}.{entry}": inner for entry, inner in value.items()}
        else:
            yield from _key(cls, key, name, value)
    for name, inner in groups.items():
        yield ""
        chosen = getattr(inner, "_registry_name", None)
        yield f"{name}{f' = {chosen!r}' if chosen else ''}: {_summary(type(inner))}"
        yield from _values(inner, f"{name}.")


def _check(word: str, allowed: Iterable[str], kind: str, done: list[str]) -> None:
    if word not in allowed:
        position = ".".join([*done, word])
        raise UserError(f"{position}: unknown {kind}{nearest(word, allowed)} (allowed: {', '.join(allowed)})")


def _group(cls: type, title: str) -> Iterator[str]:
    yield f"{title}: {_summary(cls)}"
    for key in schema.keys(cls):
        yield ""
        yield from _key(cls, key)


def _entries(cls: type, key: str, position: list[str], options: Mapping[str, type]) -> Iterator[str]:
    yield from _key(cls, key)
    yield ""
    for name, option in options.items():
        yield from textwrap.wrap(f"{name:18} {_summary(option)}", _WIDTH, subsequent_indent=" " * 19)
    yield ""
    yield f"`ssljax list keys {'.'.join(position)}.NAME` lists the keys of one of them."


def _key(cls: type, key: str, path: str = "", value: Any = dataclasses.MISSING) -> Iterator[str]:
    """Yields the value (or the default), type and range of a key on one line, and its meaning below.

    Args:
        cls: the class of the group.
        key: name of the key.
        path: path to show; empty: the name.
        value: value of the key in a config; without it, the default is shown.
    """
    field = schema.keys(cls)[key]
    default = schema.default_of(field)
    state = "(required)" if default is dataclasses.MISSING else f"= {_plain(default)}"
    if value is not dataclasses.MISSING:
        other = default is not dataclasses.MISSING and _plain(value) != _plain(default)
        state = f"= {_plain(value)}" + (f" (default {_plain(default)})" if other else "")
    hint = "a group chosen by name" if field.metadata.get("registry") else schema.describe(get_type_hints(cls)[key])
    bounds = [f"{sign} {bound}" for sign, bound in field.metadata.get("bounds", {}).items()]
    kind = ["may change at a restart"] if field.metadata.get("free") else []
    yield f"{path or key} {state}  [{', '.join([hint, *bounds, *kind])}]"
    yield from textwrap.wrap(
        schema.key_doc(cls, key), _WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
    )


def _plain(default: Any) -> str:
    if dataclasses.is_dataclass(default):
        return "its defaults"
    if isinstance(default, Mapping) and "name" in default:
        return default["name"]
    return repr(default)


def _summary(cls: type) -> str:
    """Returns the first paragraph of the docstring of a class."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())
