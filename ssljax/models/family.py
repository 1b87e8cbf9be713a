"""Shared by all families: presets and the outputs of an encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax

from ssljax.base.errors import UserError, nearest
from ssljax.base.schema import setting
from ssljax.layers.config import BlockConfig


class Encoded(NamedTuple):
    """The outputs of an encoder."""

    tokens: jax.Array  # [B, T, D], after the final norm
    pooled: jax.Array  # [B, D]
    states: jax.Array | None = None  # [1 + layers, B, T, D] on request: input of each block, output of the last
    cache: Any = None  # updated keys and values, if a cache was passed
    router: jax.Array | None = None  # float32 logits [layers with experts, B, T, E]
    prefix: jax.Array | None = None  # [B, P, D]: tokens before the patches (class token, registers)


Preset = Mapping[str, Any]  # key -> value


class PublishedCount(NamedTuple):
    """Differences between the model whose parameters the publication counts and the one that trains by default."""

    keys: Preset = {}  # noqa: RUF012 (never mutated): other values of keys, such as a pooler and no read-out
    classes: int = 0  # outputs of a linear classifier on `pooled` that is counted too


def dims(width: int, depth: int, heads: int, **more: Any) -> Preset:
    """The values of a preset: width, number of blocks, number of heads, and any other keys."""
    return {"width": width, "depth": depth, "heads": heads, **more}


@dataclasses.dataclass(frozen=True)
class TransformerConfig(BlockConfig):
    """A stack of blocks. Keys that differ from their defaults take precedence over the values of the preset."""

    presets: ClassVar[Mapping[str, Preset]] = {}
    published_count: ClassVar[PublishedCount] = PublishedCount()

    preset: str | None = setting(
        None, doc="name of published dimensions (an unknown name lists them); None: width, depth and heads are required"
    )
    depth: int | None = setting(None, ge=1, doc="number of blocks; None: the preset's")

    def with_preset(self) -> Self:
        """A copy with the values of the preset filled in."""
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
    """A copy in which the values of the preset replace defaults."""
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
    """The shape of the element `key` of one example; the UserError names the config key `path` if there is none."""
    if key not in spec.elements:
        raise UserError(f"{path}: this model reads {key!r}, but the data have: {', '.join(spec.elements)}")
    return tuple(spec.elements[key]["shape"])
