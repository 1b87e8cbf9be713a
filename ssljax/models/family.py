"""Base classes and helpers of all families: presets and the outputs of an encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax

from ssljax.base import schema
from ssljax.base.errors import UserError, nearest
from ssljax.base.schema import setting
from ssljax.layers.config import BlockConfig


class Encoded(NamedTuple):
    """The outputs of an encoder."""

    tokens: jax.Array  # [B, T, D], after the final norm
    pooled: jax.Array  # [B, D]
    # [1 + layers, B, T, D], the input of the first block and the outputs of all blocks; None: not requested
    states: jax.Array | None = None
    cache: Any = None  # the updated cache; None: no cache was passed
    router: jax.Array | None = None  # float32 router logits [layers with experts, B, T, E]; None: no experts
    # [B, P, D], tokens before the patches (class token, registers); None: no such token
    prefix: jax.Array | None = None


Preset = Mapping[str, Any]  # {configuration key: value}


class PublishedCount(NamedTuple):
    """The model whose parameters a publication counts, as differences from the default model of the family."""

    keys: Preset = {}  # noqa: RUF012 (never mutated): keys with other values, for example a pooler and no read-out
    classes: int = 0  # number of outputs of a linear classifier on `pooled` that the count includes


def dims(width: int, depth: int, heads: int, **more: Any) -> Preset:
    """Returns a preset: width, number of blocks, number of heads, and other keys."""
    return {"width": width, "depth": depth, "heads": heads, **more}


class WithPreset:
    """A configuration with presets: a key that is given takes precedence over the preset, in a group of keys too."""

    presets: ClassVar[Mapping[str, Preset]] = {}

    @classmethod
    def inherit(cls, values: Mapping[str, Any], defaults: Any) -> tuple[Mapping[str, Any], Any]:
        """Takes keys that are not given from the preset; called by `schema.build`.

        Args:
            values: the keys that are given. `None` for a dimension that has no default means the preset's value.
            defaults: an instance with the values of missing keys; None: the defaults of the class.

        Returns:
            `values` and `defaults` without a preset; unchanged if there is no preset or an unknown one. The preset's
            `OF_DATA` are left out, since the data of a run decide them.
        """
        defaults = cls() if defaults is None else defaults
        name = values.get("preset", defaults.preset)
        if not isinstance(name, str) or name not in cls.presets:
            return values, defaults
        full = dataclasses.replace(defaults, preset=name).with_preset()
        full = dataclasses.replace(full, **{k: getattr(defaults, k) for k in OF_DATA if k in cls.presets[name]})
        given = {k: v for k, v in values.items() if v is not None or k not in _DIMENSIONS}
        return {**given, "preset": None}, full


OF_DATA = ("vocab_size", "max_len", "image_shape")  # keys that the data set if they are None
_DIMENSIONS = ("width", "depth", "heads", "depths")


@dataclasses.dataclass(frozen=True)
class TransformerConfig(WithPreset, BlockConfig):
    """Keys of a stack of blocks. A key that is given takes precedence over the preset, in a group of keys too."""

    published_count: ClassVar[PublishedCount] = PublishedCount()

    preset: str | None = setting(
        None, doc="name of published dimensions (an unknown name lists them); None: width, depth and heads are required"
    )
    depth: int | None = setting(None, ge=1, doc="number of blocks; None: the preset's")

    def with_preset(self) -> Self:
        """Returns a copy with the values of the preset filled in."""
        return with_preset(self)

    def validate(self) -> None:
        check_preset(self)
        full = self.with_preset()
        if full.depth is None:
            raise ValueError("depth: missing; a number or a preset is required")
        if full.experts is not None and full.depth % full.experts.every:
            raise ValueError(f"experts.every: {full.experts.every} does not divide the depth {full.depth}")
        if full.depth % full.group:
            raise ValueError(f"group: {full.group} does not divide the depth {full.depth}")
        BlockConfig.validate(full)
        validate_groups(full, "experts")


def with_preset(config: Any) -> Any:
    """Returns a copy of a configuration in which the values of its preset replace the defaults.

    An instance does not record which keys were given: a key that differs from its default takes precedence over the
    preset, in a group of keys too. (`schema.build` fills presets in from the keys that are given.)
    """
    if config.preset is None:
        return config
    values, changes = config.presets[config.preset], {}
    for field in dataclasses.fields(config):
        if field.name in values:
            value, default = (_built(field, v) for v in (getattr(config, field.name), schema.default_of(field)))
            changes[field.name] = _filled(value, default, values[field.name])
    return dataclasses.replace(config, **changes)


def _built(field: dataclasses.Field, value: Any) -> Any:
    """The value of a key; a mapping of the keys of a group that is chosen by name is built."""
    registry = field.metadata.get("registry")
    return schema.build_named(registry, value, field.name) if registry and isinstance(value, Mapping) else value


def _filled(value: Any, default: Any, preset: Any) -> Any:
    """The preset's value of a key if the value is the default, else the value; for a group, key by key."""
    if value == default:
        return preset
    if not dataclasses.is_dataclass(preset) or len({type(value), type(default), type(preset)}) > 1:
        return value
    keys = [field.name for field in dataclasses.fields(preset)]
    filled = {k: _filled(*(getattr(group, k) for group in (value, default, preset))) for k in keys}
    return dataclasses.replace(value, **filled)


def validate_groups(config: Any, *names: str) -> None:
    """Checks groups of keys of a configuration whose preset values are filled in; a group may be None.

    Raises:
        ValueError: settings of a group exclude each other ("group.key: ...").
    """
    for name in names:
        group = getattr(config, name)
        try:
            if group is not None:
                group.validate()
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from error


def check_preset(config: Any) -> None:
    """Checks that the family has the preset of a configuration.

    Raises:
        ValueError: unknown preset.
    """
    if config.preset is not None and config.preset not in config.presets:
        close = nearest(config.preset, config.presets)
        raise ValueError(f"preset: unknown preset {config.preset!r}{close} (known: {', '.join(config.presets)})")


def element_shape(spec: Any, key: str, path: str) -> tuple[int, ...]:
    """The shape of one element of an example.

    Args:
        spec: `ssljax.data.DataSpec` of the data.
        key: name of the element, such as "image".
        path: config key for the message.

    Raises:
        UserError: examples have no such element.
    """
    if key not in spec.elements:
        raise UserError(f"{path}: this model reads {key!r}, but the data have: {', '.join(spec.elements)}")
    return tuple(spec.elements[key]["shape"])
