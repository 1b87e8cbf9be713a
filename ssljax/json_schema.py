"""A JSON schema of all keys of a config, made from the dataclasses, for completion and checks in editors."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from ssljax.base import schema
from ssljax.config import RunConfig

_PLAIN = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}
_BOUNDS = {">": "exclusiveMinimum", ">=": "minimum", "<": "exclusiveMaximum", "<=": "maximum"}


def json_schema() -> dict[str, Any]:
    """Returns the schema (draft 2020-12) of a run; groups are in "$defs"."""
    definitions: dict[str, Any] = {}
    root = _object(RunConfig, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ssljax", **root, "$defs": definitions}


def _object(cls: type, definitions: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """The schema of a group; `name`: the value of its key `name`, if it is chosen by name."""
    hints = typing.get_type_hints(cls)
    properties: dict[str, Any] = {} if name is None else {"name": {"const": name}}
    required = [] if name is None else ["name"]
    for key, field in schema.keys(cls).items():
        default, found = schema.default_of(field), _of_key(cls, key, hints[key], field, definitions)
        if default is dataclasses.MISSING:
            required.append(key)
        elif isinstance(default, bool | int | float | str | None):
            found["default"] = default
        properties[key] = {**found, "description": schema.key_doc(cls, key)}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _of_key(cls: type, key: str, hint: Any, field: dataclasses.Field, definitions: dict[str, Any]) -> dict[str, Any]:
    registry, each = field.metadata.get("registry"), field.metadata.get("each")
    if each is not None:
        return {"type": "object"}  # evaluations, whose type may be their name
    if registry is not None:
        options = [_reference(registry.get(name), definitions, name) for name in registry]
        outside = {"type": "object", "properties": {"name": {"pattern": ":"}}, "required": ["name"]}
        nothing = [] if field.default is not None else [{"type": "null"}]
        return {"anyOf": [*options, outside, *nothing]}
    return _of_hint(hint, definitions, field.metadata.get("bounds", {}))


def _of_hint(hint: Any, definitions: dict[str, Any], bounds: Mapping[str, float]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of_hint(argument, definitions, bounds) for argument in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": _of_hint(arguments[0], definitions, bounds)}
    if origin is tuple:
        return {"type": "array", "minItems": len(arguments), "maxItems": len(arguments)}
    if origin is dict or hint is dict:
        return {"type": "object"}
    if dataclasses.is_dataclass(hint):
        return _reference(typing.cast(type, hint), definitions)
    if hint not in _PLAIN:
        return {}
    kind = _PLAIN[hint]
    numeric = {_BOUNDS[sign]: bound for sign, bound in bounds.items()} if kind in ("integer", "number") else {}
    return {"type": kind, **numeric}


def _reference(cls: type, definitions: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    key = f"{cls.__module__}.{cls.__qualname__}" + (f".{name}" if name else "")
    if key not in definitions:
        definitions[key] = {}  # a group may contain itself
        definitions[key] = _object(cls, definitions, name)
    return {"$ref": f"#/$defs/{key}"}
