"""Configuration: the keys of a group are the fields of a frozen dataclass.

A dataclass declares its keys with type hints and `setting(...)`. `build` makes an instance from a mapping. Unknown
keys, wrong types and values out of range are refused with a message of one line, which names the key and its meaning.
The docs page and `ssljax list keys` read the same fields, so there is no second description of a configuration.

Kinds of field:
    `x: float = setting(0.1, gt=0, doc="...")`       a key with a default, a range and its meaning
    `x: Literal["a", "b"] = "a"`                     a choice
    `x: Inner = setting(Inner())`                    a nested group, built from its own dataclass
    `x: Any = setting({"name": "mlp"}, registry=R)`  a nested group chosen by its `name`
    `x: Any = injected()`                            no key: the caller of `build` passes it (a module, a data spec)
    `x: int = fixed(1)`                              no key: a constant of a model family

A class may have a classmethod `inherit(values, defaults) -> (values, defaults)`, which is called before a group is
built: it replaces the instance from which missing keys are taken (None: the defaults of the class), for presets.

A key belongs to the identity of a run, of which a hash is made, because it changes the learned parameters. Exceptions
are marked `free=True`: they change only the execution (mesh, logging, kernels).
"""

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from ssljax.base.errors import UserError, closest, nearest, shown
from ssljax.base.plain import plain
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
    each: Registry | None = None,
    doc: str = "",
) -> Any:
    """Declares a configuration key.

    Args:
        default: default value, copied if mutable; a key without a default is required.
        gt, ge, lt, le: bounds of a number, or of each number of a list.
        free: True: the key does not change the learned parameters.
        registry: the key is a group, whose `name` selects a class of this registry.
        each: the key is a mapping of groups, whose `name` selects a class of this registry. For documentation only: the
            dataclass builds them itself.
        doc: the meaning of the key, a phrase without a final full stop. The docs page and `ssljax list keys` show it;
            error messages show the part before the first semicolon. A subclass inherits it if it only changes the
            default.
    """
    bounds = {">": gt, ">=": ge, "<": lt, "<=": le}
    metadata = {
        "bounds": {sign: bound for sign, bound in bounds.items() if bound is not None},
        "free": free,
        "registry": registry,
        "each": each,
        "doc": doc,
    }
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def injected(default: Any = None) -> Any:
    """Declares a field that is not a configuration key: the caller of `build` passes it."""
    return dataclasses.field(default=default, metadata={"fixed": True}, repr=False)


def fixed(default: Any = None, doc: str = "") -> Any:
    """Declares a field that is not a configuration key: a constant that a model family sets."""
    return dataclasses.field(default=default, metadata={"fixed": True, "doc": doc}, repr=False)


# ---- descriptions of keys


def keys(cls: type) -> dict[str, dataclasses.Field]:
    """The configurable fields of a dataclass, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init and not f.metadata.get("fixed")}


def key_doc(cls: type, key: str) -> str:
    """The `doc` of a key: of the first class in the MRO of `cls` that has one; "" if none has."""
    declared = (owner.__dict__.get("__dataclass_fields__", {}).get(key) for owner in cls.__mro__)
    return next((doc for field in declared if field is not None and (doc := field.metadata.get("doc"))), "")


def groups(cls: type, key: str) -> dict[str, type]:
    """The dataclasses of which the value of a key may be an instance.

    Returns:
        {name: class} for a group that is selected by name; {"": class} for a group with a single class, also inside an
        optional, a list or a mapping; {} for a plain value.
    """
    metadata = keys(cls)[key].metadata
    registry = metadata.get("registry") or metadata.get("each")
    if registry is not None:
        return {name: registry.get(name) for name in registry}
    inside = _dataclasses_in(typing.get_type_hints(cls)[key])
    return {"": inside[0]} if inside else {}


def _dataclasses_in(hint: Any) -> list[type]:
    """The dataclasses that a type hint mentions."""
    inner = [group for argument in typing.get_args(hint) for group in _dataclasses_in(argument)]
    return [hint, *inner] if isinstance(hint, type) and dataclasses.is_dataclass(hint) else inner


def default_of(field: dataclasses.Field) -> Any:
    """The default value of a field; `dataclasses.MISSING` if the field is required."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def is_default(instance: Any, key: str) -> bool:
    """Returns True if a key of a dataclass has its default value."""
    field = keys(type(instance))[key]
    default, registry = default_of(field), field.metadata.get("registry")
    if registry is not None and isinstance(default, Mapping):
        default = build_named(registry, default, key)
    return bool(getattr(instance, key) == default)


def describe(hint: Any) -> str:
    """Describes a type hint in words, for example "an integer or None"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if hint in (None, type(None)):
        return "None"
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list of {'pairs, each ' if _is_pair(arguments[0]) else ''}{describe(arguments[0])}"
        return f"a list of {len(arguments)} ({', '.join(map(describe, arguments))})"
    if origin is dict or hint is dict or dataclasses.is_dataclass(hint):
        return "a group of keys"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))


# ---- from a mapping to an instance


def build(cls: type, values: Mapping[str, Any], path: str, /, **passed: Any) -> Any:
    """Builds an instance of a dataclass from a mapping of its keys.

    Args:
        cls: a frozen dataclass.
        values: {key: value}, see `ssljax.base.plain`; missing keys have their defaults.
        path: dotted path of the group, for messages.
        **passed: values of `injected()` fields; fields that `cls` does not have are ignored.

    Raises:
        UserError: an unknown or missing key, a wrong type, a value out of range, or a ValueError from `validate()`.
    """
    values = plain(values, path)
    if not isinstance(values, Mapping):
        raise UserError(f"{path or 'config'}: got {shown(values)}, must be a group of keys")
    return _build(cls, values, path, **passed)


def _build(cls: type, values: Mapping[str, Any], path: str, /, *, defaults: Any = None, **passed: Any) -> Any:
    """Same as `build`, for plain values.

    defaults: an instance whose values replace the defaults of `cls`; None: the defaults of `cls`.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{path}.name: {cls!r} is not a dataclass, so it has no keys to set")
    _refuse_unknown(cls, values, path)
    if hasattr(cls, "inherit"):
        values, defaults = cls.inherit(values, defaults)
    arguments = {f.name: passed[f.name] for f in dataclasses.fields(cls) if f.name in passed}
    if defaults is not None:  # including `fixed()` fields, which are no keys
        inherited = {f.name: getattr(defaults, f.name) for f in dataclasses.fields(cls) if f.init}
        arguments = {**inherited, **arguments}
    hints = typing.get_type_hints(cls)
    for key, field in keys(cls).items():
        default = default_of(field) if defaults is None else getattr(defaults, key)
        registry = field.metadata.get("registry")
        is_named_group = registry is not None and (isinstance(default, Mapping) or _name_of(default, registry))
        if key in values:
            value = values[key]
        elif default is dataclasses.MISSING:
            raise UserError(f"{_join(path, key)}: missing; {describe(hints[key])} is required{_reminder(cls, key)}")
        elif is_named_group or hasattr(type(default), "inherit"):
            value = {}
        else:
            continue
        try:
            arguments[key] = _convert(value, hints[key], field, _join(path, key), default)
        except _MismatchError as error:
            raise UserError(f"{error}{_reminder(cls, key)}") from error
    instance = cls(**arguments)
    if hasattr(instance, "validate"):
        try:
            instance.validate()
        except ValueError as error:  # "key: problem", with the key inside the group
            raise UserError(_join(path, str(error))) from error
    return instance


def build_named(registry: Registry, values: Mapping[str, Any], path: str, **passed: Any) -> Any:
    """Builds an instance of the registered class `values["name"]`; `to_dict` includes this name.

    Raises:
        UserError: the name is missing or unknown, or an error of `build`.
    """
    return _build_named(registry, plain(values, path), path, **passed)


def _build_named(registry: Registry, values: Mapping[str, Any], path: str, **passed: Any) -> Any:
    """Same as `build_named`, for plain values."""
    if not isinstance(values, Mapping) or "name" not in values:
        raise UserError(f"{path}.name: missing; one of {', '.join(registry)} is required")
    cls = registry.get(values["name"], f"{path}.name")
    outer = getattr(path, "listed", path)
    listed = f"{outer}.{values['name']}" if values["name"] in registry and outer else ""
    own = {k: v for k, v in values.items() if k != "name" or k in keys(cls)}
    instance = _build(cls, own, _Path(path, listed), **passed)
    object.__setattr__(instance, "_registry_name", values["name"])
    return instance


def build_whole(registry: Registry, values: Mapping[str, Any], path: str) -> Any:
    """Same as `build_named`, but `values` may also set `fixed()` fields, in nested groups too."""
    cls = registry.get(values["name"], f"{path}.name")
    key_values, fixed_values = _split_fixed(cls, values)
    return _with_fixed(build_named(registry, key_values, path), fixed_values)


def _split_fixed(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits values into (values of keys, values of `fixed()` fields), both nested like `values`."""
    key_values: dict[str, Any] = {}
    fixed_values: dict[str, Any] = {}
    hints, fields = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    for name, value in values.items():
        if name in fields and fields[name].metadata.get("fixed"):
            fixed_values[name] = value
        elif isinstance(value, Mapping) and (group := _group_class(fields.get(name), hints.get(name), value)):
            key_values[name], inner = _split_fixed(group, value)
            fixed_values |= {name: inner} if inner else {}
        else:
            key_values[name] = value
    return key_values, fixed_values


def _group_class(field: Any, hint: Any, value: Mapping[str, Any]) -> Any:
    """The dataclass of a nested group; None if the mapping is a plain value."""
    registry = field.metadata.get("registry") if field is not None else None
    if registry is not None:
        return registry.get(value["name"]) if "name" in value else None
    return hint if dataclasses.is_dataclass(hint) else None


def _with_fixed(instance: Any, values: Mapping[str, Any]) -> Any:
    """Returns a copy of an instance with other values of `fixed()` fields, in nested groups too."""
    inner = {k: _with_fixed(getattr(instance, k), v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return replace(instance, **{k: tuple(v) if isinstance(v, list) else v for k, v in inner.items()})


# ---- from an instance to a mapping


def replace(instance: Any, **values: Any) -> Any:
    """Returns `dataclasses.replace(instance, **values)` with the name by which the instance was chosen."""
    changed = dataclasses.replace(instance, **values)
    if name := getattr(instance, "_registry_name", None):
        object.__setattr__(changed, "_registry_name", name)
    return changed


def to_dict(instance: Any, free: bool = True) -> dict[str, Any]:
    """Returns the complete configuration of an instance as JSON values, defaults included.

    Args:
        instance: an instance of a configuration dataclass.
        free: False: without `free` keys, for the identity of a run.
    """
    instance = getattr(instance, "unwrapped", instance)  # a wrapper has no keys of the config
    name = getattr(instance, "_registry_name", None)
    out = {"name": name} if name else {}
    for key, field in keys(type(instance)).items():
        if free or not field.metadata.get("free"):
            out[key] = _to_json(getattr(instance, key), free)
    return out


def _to_json(value: Any, free: bool) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value, free)
    if isinstance(value, Mapping):
        return {k: _to_json(v, free) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_to_json(v, free) for v in value]
    return value


# ---- checks and conversions of one value


class _MismatchError(ValueError):
    """A value that does not fit its key: "path: got ..., must be ..."."""


_SHOWN = 20  # largest number of keys that an error message lists


class _Path(str):
    """A dotted path of a group, for messages.

    Attributes:
        listed: the path with the names of groups chosen by name, as `ssljax list keys` takes it ("model.clip.text" for
            "model.text"); "" if it cannot list the group, whose class is outside the registry.
    """

    listed: str

    def __new__(cls, path: str, listed: str) -> "_Path":
        new = super().__new__(cls, path)
        new.listed = listed
        return new


def _join(path: str, key: str) -> str:
    joined = f"{path}.{key}" if path else key
    if not isinstance(path, _Path):
        return joined
    return _Path(joined, f"{path.listed}.{key}" if path.listed else "")


def _reminder(cls: type, key: str) -> str:
    """The end of a message, " [key: meaning]" with the doc up to its first semicolon; "" without a doc."""
    gist = key_doc(cls, key).partition("; ")[0]
    return f" [{key}: {gist}]" if gist else ""


def _refuse_unknown(cls: type, values: Mapping[str, Any], path: str) -> None:
    allowed = keys(cls)
    for key in values:
        if key not in allowed:
            close = closest(key, allowed)
            reminder = _reminder(cls, close) if close else ""
            names = f"allowed: {', '.join(list(allowed)[:_SHOWN]) or 'none'}"
            listed = getattr(path, "listed", path)
            if len(allowed) > _SHOWN:
                names = f"`ssljax list keys {listed}` lists all {len(allowed)}" if listed else f"{names}, ..."
            raise UserError(f"{_join(path, key)}: unknown key{nearest(key, allowed)} ({names}){reminder}")


def _convert(value: Any, hint: Any, field: dataclasses.Field, path: str, default: Any) -> Any:
    """Converts a value of a mapping to the value of a field.

    Raises:
        _MismatchError: the value does not fit.
        UserError: a value inside a nested group does not fit.
    """
    registry = field.metadata.get("registry")
    if registry is not None:
        return _named_group(value, default, registry, path)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(default) and not isinstance(default, type):
        return _build(type(default), value, path, defaults=default)  # keys that are not given stay as in the default
    value = _typed(value, hint, path)
    for number in value if isinstance(value, tuple) else (value,):
        for sign, bound in field.metadata.get("bounds", {}).items():
            if isinstance(number, int | float) and not _HOLDS[sign](number, bound):
                raise _MismatchError(f"{path}: got {shown(number)}, must be {sign} {bound}")
    return value


def _named_group(value: Any, default: Any, registry: Registry, path: str) -> Any:
    """Builds the class that a group names; an instance is returned unchanged.

    default: a mapping or an instance, whose keys are kept unless the group has another name; else it is not used.
    """
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        return _build_named(registry, _merge(default, value), path)
    if isinstance(value, Mapping):
        own = _name_of(default, registry)
        if not own or value.get("name", own) != own:
            return _build_named(registry, value, path)
        return _build_named(registry, {"name": own, **value}, path, defaults=default)
    if not dataclasses.is_dataclass(value) and (value is not None or default is not None):
        raise _MismatchError(f"{path}: got {shown(value)}, must be a group of keys with a name ({', '.join(registry)})")
    return value


def _name_of(instance: Any, registry: Registry) -> str:
    """The name of an instance's class in a registry; "" if it has none."""
    if not dataclasses.is_dataclass(instance):
        return ""
    return next((name for name in registry if registry.get(name) is type(instance)), "")


def _merge(default: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces keys of a default group by `value`, in nested groups too; with another `name`, the whole group."""
    if value.get("name", default.get("name")) != default.get("name"):
        return dict(value)
    nested = [k for k, v in value.items() if isinstance(v, Mapping) and isinstance(default.get(k), dict)]
    return {**default, **value, **{k: _merge(default[k], value[k]) for k in nested}}


_HOLDS = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def _typed(value: Any, hint: Any, path: str) -> Any:
    """Converts a value to its type hint; raises as `_convert` does."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _typed_union(value, hint, path)
    if origin is Literal:
        return _typed_choice(value, arguments, path)
    if origin is tuple and _is_pair(arguments[0]) and isinstance(value, Mapping):
        value = _pairs(value, path)
    if origin is tuple and isinstance(value, tuple | list):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(value) == len(arguments):
            return tuple(_typed(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, arguments)))
    elif isinstance(value, Mapping) and (origin is dict or hint is dict):
        return {str(k): _typed(v, arguments[1], f"{path}.{k}") for k, v in value.items()} if arguments else dict(value)
    elif isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    elif hint is float:
        # NaN and infinity have no JSON form.
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:  # a count may be written as 1e3
            return int(value)
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise _MismatchError(f"{path}: got {shown(value)} ({type(value).__name__}), must be {describe(hint)}")


def _is_pair(hint: Any) -> bool:
    """Returns True for the hint of a pair whose first part is a text."""
    return typing.get_origin(hint) is tuple and len(arguments := typing.get_args(hint)) == 2 and arguments[0] is str


def _pairs(group: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    """Returns a group of at most one key as a list of pairs; a group has no order (ConfigDict sorts its keys)."""
    pairs = list(group.items())
    if len(pairs) > 1:
        raise _MismatchError(
            f"{path}: got a group of keys, must be a list of pairs, since their order counts: {shown(pairs)}"
        )
    return pairs


def _typed_union(value: Any, hint: Any, path: str) -> Any:
    # The type of the value is tried first, so that an int stays an int if both int and float are allowed.
    for option in sorted(typing.get_args(hint), key=lambda option: type(value) is not option):
        try:
            return _typed(value, option, path)
        except _MismatchError:
            continue  # (a UserError from a nested group passes: it names the wrong key)
    raise _MismatchError(f"{path}: got {shown(value)} ({type(value).__name__}), must be {describe(hint)}")


def _typed_choice(value: Any, choices: tuple[Any, ...], path: str) -> Any:
    if value in choices:
        return value
    if value is None and "none" in choices:  # `--config.model.positions=none`
        return "none"
    close = nearest(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
    raise _MismatchError(f"{path}: got {shown(value)}{close} (allowed: {', '.join(map(repr, choices))})")
