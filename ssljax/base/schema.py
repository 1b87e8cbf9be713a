"""Configuration is code: a group of keys is the fields of the frozen dataclass that it builds.

A dataclass declares its keys with type hints and `setting(...)`; `build` turns a mapping into an instance and
refuses, in one line that names the key, an unknown key, a wrong type or an impossible value. There is no second
description of what a config may hold.

Kinds of field:
    `x: float = setting(0.1, gt=0, doc="tau")`       a key with a default, a range and its meaning
    `x: Literal["a", "b"] = "a"`                     a choice
    `x: Inner = setting(Inner())`                    a nested group, built from its own dataclass
    `x: Any = setting({"name": "mlp"}, registry=R)`  a nested group chosen by its `name`
    `x: Any = injected()`                            no key: the caller of `build` passes it (a module, a data spec)
    `x: int = fixed(1)`                              no key: a constant of a model family

Every key is *identity* (it changes what is learned, so it is part of the run's hash) unless marked `free=True`
(mesh, logging, kernels: the same run done another way).
"""

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from ssljax.base.errors import UserError, nearest
from ssljax.base.registry import Registry


def setting(
    default: Any = dataclasses.MISSING,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    free: bool = False,
    registry: Registry | None = None,
    doc: str = "",
) -> Any:
    """A configurable field with a default (mutable defaults are copied), bounds, kind and meaning.

    `doc` is the one place for the meaning of a key: the configuration page, `--help` and error messages read it.
    """
    bounds = {">": gt, ">=": ge, "<": lt, "<=": le}
    metadata = {"bounds": {sign: b for sign, b in bounds.items() if b is not None}, "free": free, "doc": doc}
    metadata["registry"] = registry
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def injected(default: Any = None) -> Any:
    """A field that is not a configuration key: the caller of `build` passes it."""
    return dataclasses.field(default=default, metadata={"fixed": True}, repr=False)


def fixed(default: Any = None, doc: str = "") -> Any:
    """A field that is not a configuration key: a constant that a model family sets."""
    return dataclasses.field(default=default, metadata={"fixed": True, "doc": doc}, repr=False)


def keys(cls: type) -> dict[str, dataclasses.Field]:
    """The configurable fields of a dataclass, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init and not f.metadata.get("fixed")}


def build(cls: type, values: Mapping[str, Any], path: str, /, *, defaults: Any = None, **passed: Any) -> Any:
    """An instance of dataclass `cls` from a mapping of its keys.

    Args:
        cls: a frozen dataclass.
        values: the keys that were given.
        path: dotted path of the group, for messages.
        defaults: an instance whose values stand for the keys that are not given (None: the defaults of `cls`).
        **passed: values of `injected()` fields; those that `cls` does not have are dropped.

    Raises:
        UserError: unknown key, wrong type, value out of range, or what the class's `validate()` complains of.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{path}.name: {cls!r} is not a dataclass, so it has no keys to set")
    known = keys(cls)
    for key in values:
        if key not in known:
            where = f"{path}.{key}" if path else key
            raise UserError(f"{where}: unknown key{nearest(key, known)} (allowed: {', '.join(known) or 'none'})")
    hints = typing.get_type_hints(cls)
    arguments = {f.name: passed[f.name] for f in dataclasses.fields(cls) if f.name in passed}
    if defaults is not None:  # its family's own fields too, which are no keys
        constants = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in known]
        arguments = {name: getattr(defaults, name) for name in constants} | arguments
    for name, field in known.items():
        where = f"{path}.{name}" if path else name
        if name in values:
            default = field.default if defaults is None else getattr(defaults, name)
            arguments[name] = _convert(values[name], hints[name], field, where, default)
        elif defaults is not None:
            arguments[name] = getattr(defaults, name)
        elif field.metadata.get("registry") is not None and field.default_factory is not dataclasses.MISSING:
            arguments[name] = _convert(field.default_factory(), hints[name], field, where, None)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: missing; {_describe(hints[name])} is required")
    instance = cls(**arguments)
    if hasattr(instance, "validate"):
        try:
            instance.validate()
        except ValueError as error:  # `validate` names its own key; the path of the group is ours to add
            raise UserError(f"{path}.{error}" if path else str(error)) from error
    return instance


def to_dict(instance: Any, free: bool = True) -> dict[str, Any]:
    """The complete configuration of a built instance as JSON values, defaults included.

    With `free=False` only what decides what is learned: the part that the identity hash of a run is made of.
    """
    instance = getattr(instance, "unwrapped", instance)  # a wrapper has no keys, the wrapped instance has
    name = getattr(instance, "_registry_name", None)
    out = {"name": name} if name else {}
    for key, field in keys(type(instance)).items():
        if free or not field.metadata.get("free"):
            out[key] = _plain(getattr(instance, key), free)
    return out


def build_named(registry: Registry, values: Mapping[str, Any], path: str, **passed: Any) -> Any:
    """An instance of the registered class that `values["name"]` asks for; remembers the name for `to_dict`."""
    if not isinstance(values, Mapping) or "name" not in values:
        raise UserError(f"{path}.name: missing; one of {', '.join(registry)} is required")
    cls = registry.get(values["name"], f"{path}.name")
    instance = build(cls, {k: v for k, v in values.items() if k != "name" or k in keys(cls)}, path, **passed)
    object.__setattr__(instance, "_registry_name", values["name"])
    return instance


def build_whole(registry: Registry, values: Mapping[str, Any], path: str) -> Any:
    """`build_named` for values among which are `fixed()` fields, in nested groups too."""
    cls = registry.get(values["name"], f"{path}.name")
    asked, passed = _apart(cls, values)
    return _with(build_named(registry, asked, path), passed)


def _apart(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of keys, and of `fixed()` fields."""
    asked, passed = {}, {}
    hints, fields = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    for name, value in values.items():
        if name in fields and fields[name].metadata.get("fixed"):
            passed[name] = value
        elif isinstance(value, Mapping) and (group := _group(fields.get(name), hints.get(name), value)):
            asked[name], inner = _apart(group, value)
            passed |= {name: inner} if inner else {}
        else:
            asked[name] = value
    return asked, passed


def _group(field: Any, hint: Any, value: Mapping[str, Any]) -> Any:
    """The dataclass that a nested mapping is built to, None for other mappings."""
    registry = field.metadata.get("registry") if field is not None else None
    if registry is not None:
        return registry.get(value["name"]) if "name" in value else None
    return hint if dataclasses.is_dataclass(hint) else None


def _with(instance: Any, passed: Mapping[str, Any]) -> Any:
    inner = {k: _with(getattr(instance, k), v) if isinstance(v, Mapping) else v for k, v in passed.items()}
    whole = dataclasses.replace(instance, **{k: tuple(v) if isinstance(v, list) else v for k, v in inner.items()})
    if hasattr(instance, "_registry_name"):
        object.__setattr__(whole, "_registry_name", instance._registry_name)
    return whole


def _plain(value: Any, free: bool) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value, free)
    if isinstance(value, Mapping):
        return {k: _plain(v, free) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v, free) for v in value]
    return value


def _convert(value: Any, hint: Any, field: dataclasses.Field, where: str, default: Any) -> Any:
    registry = field.metadata.get("registry")
    if registry is not None:
        if isinstance(value, Mapping):
            if field.default_factory is not dataclasses.MISSING:
                value = _over(field.default_factory(), value)
            return build_named(registry, value, where)
        if not dataclasses.is_dataclass(value) and (value is not None or field.default is not None):
            raise UserError(f"{where}: got {value!r}, must be a group of keys with a name ({', '.join(registry)})")
        return value
    if isinstance(value, Mapping) and dataclasses.is_dataclass(default) and not isinstance(default, type):
        return build(type(default), value, where, defaults=default)  # the rest stays as the field's default has it
    value = _typed(value, hint, where)
    for sign, bound in field.metadata.get("bounds", {}).items():
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, int | float) and not _HOLDS[sign](number, bound):
                raise UserError(f"{where}: got {number!r}, must be {sign} {bound}")
    return value


def _over(default: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` over the keys of a default group, nested groups too; a group that names another entry replaces it."""
    if value.get("name", default.get("name")) != default.get("name"):
        return dict(value)
    both = [k for k, v in value.items() if isinstance(v, Mapping) and isinstance(default.get(k), dict)]
    return {**default, **value, **{k: _over(default[k], value[k]) for k in both}}


_HOLDS = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type hint asks, or a UserError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        # An exact match first, so that an int stays an int where both int and float are allowed.
        for option in sorted(arguments, key=lambda option: type(value) is not option):
            try:
                return _typed(value, option, where)
            except UserError:
                # What is wrong inside a group says more than that it is not the other option.
                if isinstance(value, Mapping) and isinstance(option, type) and dataclasses.is_dataclass(option):
                    raise
    elif origin is Literal:
        if value in arguments:
            return value
        if value is None and "none" in arguments:  # `--config.model.positions=none`
            return "none"
        close = nearest(value, [a for a in arguments if isinstance(a, str)]) if isinstance(value, str) else ""
        raise UserError(f"{where}: got {value!r}{close} (allowed: {', '.join(map(repr, arguments))})")
    elif hint is None or hint is type(None):
        if value is None:
            return None
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return build(hint, value, where)
    elif origin is tuple:
        if isinstance(value, tuple | list):
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                return tuple(_typed(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
            if len(value) == len(arguments):
                return tuple(_typed(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, arguments)))
    elif origin is dict or hint is dict:
        if isinstance(value, Mapping):
            if not arguments:
                return dict(value)
            return {str(k): _typed(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    elif hint is float:
        # NaN and infinity have no JSON form, and no setting means anything by them.
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():  # so that 1e3 can be written for a count
            return int(value)
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise UserError(f"{where}: got {value!r} ({type(value).__name__}), must be {_describe(hint)}")


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if hint in (None, type(None)):
        return "None"
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list of {_describe(arguments[0])}"
        return f"a list of {len(arguments)} ({', '.join(map(_describe, arguments))})"
    if origin is dict or hint is dict or dataclasses.is_dataclass(hint):
        return "a group of keys"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))
