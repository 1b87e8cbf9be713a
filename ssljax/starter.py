"""A config file to edit, made from a shipped config, for `ssljax init`."""

import json
import pathlib
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ssljax import models, objectives
from ssljax.base import schema
from ssljax.base.errors import UserError, nearest
from ssljax.base.files import write_whole
from ssljax.config import RunConfig, build, override, read_file, shipped_configs

OWN_DATA = ("data=folder", "data=files")  # arguments of shipped configs for data that a URI names
_OTHERS = ("configs/recipes/", "configs/scaling/", "configs/ablations/")  # for clusters, without data; of many runs
# Source with one kind of data -> (kinds of input that models read of it, the objective to start from).
_SOURCES = {
    "images": (("images",), "simclr"),
    "text": (("tokens", "sequences"), "causal_lm"),
    "graphs": (("graphs",), "graph_cl"),
    "audio": (("spectrograms",), "simclr"),
}
_FIRST = "configs/quickstart.py"  # the config without an objective and data
_WIDTH = 100


def write_starter(name: str, objective: str | None = None, uri: str | None = None) -> pathlib.Path:
    """Writes a config file with a comment for each key.

    Args:
        name: path of the file; ".py" is added if it is missing.
        objective: name of an objective; None: causal_lm for a source `text:`, graph_cl for `graphs:`, else simclr.
        uri: URI of the data; None: those of the shipped config.

    Returns:
        The path of the file.

    Raises:
        UserError: the file exists, or no shipped config has the objective.
    """
    path = pathlib.Path(name if name.endswith(".py") else f"{name}.py")
    if path.exists():
        raise UserError(f"{path}: exists; give another name, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {str(path.parent)!r} does not exist")
    source, values = _chosen(objective, uri)
    build(values)  # a key without a meaning would be written into the file
    write_whole(path, "".join(f"{line}\n" for line in _file(path, source, values)))
    return path


def _chosen(objective: str | None, uri: str | None) -> tuple[str, dict[str, Any]]:
    """Returns a shipped config, with its argument, and its values."""
    if objective is None and uri is None:
        return _FIRST, read_file(_FIRST)
    kinds, usual = _SOURCES.get(str(uri).partition(":")[0], ((), "simclr"))
    objective = objective or usual
    known = starters()
    if objective not in known:
        raise UserError(f"--objective: got {objective!r}{nearest(objective, known)} (allowed: {', '.join(known)})")
    if uri is None:
        return known[objective], read_file(known[objective])
    name = starters(kinds).get(objective, known[objective])
    read = _inputs(name)
    if kinds and read not in kinds and any(read in others for others, _ in _SOURCES.values()):
        raise UserError(
            f"--data: got {uri!r}, but the shipped config of {objective!r} reads {read}; start from {usual!r}, or from "
            f"another objective for {kinds[0]}"
        )
    for argument in OWN_DATA:
        try:
            values = read_file(f"{name}:{argument}")
        except UserError:  # a config of another kind of data
            continue
        return f"{name}:{argument}", override(values, "data.source", uri)[0]
    return name, override(read_file(name), "data.source", uri)[0]


def starters(kinds: tuple[str, ...] = ()) -> dict[str, str]:
    """Returns {objective: shipped config} of the configs that start from random parameters.

    Args:
        kinds: kinds of input, of which the model of a config reads one; empty: all kinds.
    """
    found: dict[str, str] = {}
    for name in (name for name in shipped_configs() if not name.startswith(_OTHERS)):
        values = read_file(name)
        if kinds and models.REGISTRY.get(values["model"]["name"]).inputs not in kinds:
            continue
        if values.get("init_from") is None and name != _FIRST:
            objective = values["objective"]["name"]
            if objective not in found or pathlib.PurePath(name).stem == objective:
                found[objective] = name
    return found


def _inputs(name: str) -> str:
    """The kind of data of a config: what its model reads, unless its objective makes that of another kind."""
    values = read_file(name)
    objective = objectives.REGISTRY.get(values["objective"]["name"])
    return str(objective.data_kind or models.REGISTRY.get(values["model"]["name"]).inputs)


def _file(path: pathlib.Path, source: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a config file."""
    yield f'"""{values["objective"]["name"]}, made from {source} by `ssljax init`.'
    yield ""
    yield f"    ssljax train --config {path} --workdir runs/{path.stem}"
    yield f"    ssljax train --config {path} --help"
    yield ""
    yield "The second command lists all keys with their meanings, those with default values too."
    yield '"""'
    yield ""
    yield ""
    yield "def get_config():"
    yield "    return dict("
    yield from _entries(RunConfig, values, " " * 8)
    yield "    )"


def _entries(cls: type, values: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Yields the lines of the keys of a group, each with the first part of its meaning as a comment."""
    order = ["name", "type", *schema.keys(cls)]
    for key, value in sorted(values.items(), key=lambda item: order.index(item[0])):
        if key in schema.keys(cls):
            meaning = schema.key_doc(cls, key).partition(";")[0]
            yield from textwrap.wrap(meaning, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        inner = _group(cls, key, value)
        if inner is None:
            yield f"{indent}{key}={_literal(value)},"
        else:
            yield f"{indent}{key}=dict("
            yield from inner(value, indent + " " * 4)
            yield f"{indent}),"


def _group(cls: type, key: str, value: Any) -> Any:
    """Returns a function (value, indent) -> lines for a value that is a group of keys; None for any other value."""
    field = schema.keys(cls).get(key)
    options = schema.groups(cls, key) if field is not None else {}
    if not isinstance(value, Mapping) or not options or not value:
        return None
    if field is not None and field.metadata.get("each"):  # name -> group

        def named(entries: Mapping[str, Any], indent: str) -> Iterator[str]:
            for name, entry in entries.items():
                yield f"{indent}{name}=dict("
                yield from _entries(options[entry.get("type", name)], entry, indent + " " * 4)
                yield f"{indent}),"

        return named
    inner = options[""] if "" in options else options[value["name"]]
    if not value.keys() <= {"name", *schema.keys(inner)}:  # a mapping of names to groups
        return None
    return lambda entries, indent: _entries(inner, entries, indent)


def _literal(value: Any) -> str:
    """Returns a value as Python code, with double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + "".join(f"{_literal(entry)}, " for entry in value).strip() + ")"
    return repr(value)
