"""Shared by all families: presets, and the outputs of an encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax

from ssljax.base.errors import UserError, nearest
from ssljax.base.schema import setting
from ssljax.layers.config import BlockConfig


class Encoded(NamedTuple):
    """What an encoder returns: vectors of the parts, and one vector of the whole."""

    tokens: jax.Array  # [B, T, D], after the final norm
    pooled: jax.Array  # [B, D]
    states: jax.Array | None = None  # [1 + layers, B, T, D] where asked for: what each block read, and the last made
    cache: Any = None  # what attention remembers, where it was given one
    router: jax.Array | None = None  # float32 logits [layers with experts, B, T, E]
    prefix: jax.Array | None = None  # [B, P, D], tokens before those of the parts (class token, registers)


Preset = Mapping[str, Any]  # values of keys under one name


class Published(NamedTuple):
    """What the published numbers of parameters of a family count differently from a model that trains here."""

    keys: Preset = {}  # noqa: RUF012 (never mutated): of the configuration, such as a pooler and no read-out
    classes: int = 0  # of a linear classifier on `pooled`


def dims(width: int, depth: int, heads: int, **more: Any) -> Preset:
    """The values of a preset: width, number of blocks and of heads, and any other keys."""
    return {"width": width, "depth": depth, "heads": heads, **more}


@dataclasses.dataclass(frozen=True)
class TransformerConfig(BlockConfig):
    """A stack of blocks with a preset; keys that differ from their defaults win over the preset's values."""

    presets: ClassVar[Mapping[str, Preset]] = {}
    published: ClassVar[Published] = Published()

    preset: str | None = setting(
        None, doc="name of published dimensions (an unknown name lists them); None: width, depth and heads are required"
    )
    depth: int | None = setting(None, ge=1)  # number of blocks; None: that of `preset`

    def with_preset(self) -> Self:
        """The configuration with the values of its preset filled in."""
        return with_preset(self)

    def validate(self) -> None:
        check_preset(self)
        full = self.with_preset()
        if full.depth is None:
            raise ValueError("depth: missing; a number or a preset is required")
        if full.experts is not None and full.depth % full.experts.every:
            raise ValueError(f"experts.every: {full.experts.every} does not divide the depth {full.depth}")
        BlockConfig.validate(full)


def with_preset(config: Any) -> Any:
    """A copy in which the values of the preset replace keys that have their defaults."""
    if config.preset is None:
        return config
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    values = config.presets[config.preset].items()
    return dataclasses.replace(config, **{k: v for k, v in values if getattr(config, k) == defaults[k]})


def check_preset(config: Any) -> None:
    """Raises ValueError if the family has no preset of that name."""
    if config.preset is not None and config.preset not in config.presets:
        close = nearest(config.preset, config.presets)
        raise ValueError(f"preset: unknown preset {config.preset!r}{close} (known: {', '.join(config.presets)})")


def element_shape(spec: Any, key: str, path: str) -> tuple[int, ...]:
    """The shape of one example's `key`; `path` is the config key to blame where the data have none."""
    if key not in spec.elements:
        raise UserError(f"{path}: this model reads {key!r}, but the data have: {', '.join(spec.elements)}")
    return tuple(spec.elements[key]["shape"])
