"""What families share: named sizes, and what an encoder returns."""

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


Size = Mapping[str, Any]  # what a named size sets


class Published(NamedTuple):
    """What the published numbers of parameters of a family count differently from a model that trains here."""

    keys: Size = {}  # noqa: RUF012 (never mutated): of the configuration, such as a pooler and no read-out
    classes: int = 0  # of a linear classifier on `pooled`


def preset(width: int, depth: int, heads: int, **more: Any) -> Size:
    """A named size of a family: its width, number of blocks and heads, and whatever else belongs to it."""
    return {"width": width, "depth": depth, "heads": heads, **more}


@dataclasses.dataclass(frozen=True)
class TransformerConfig(BlockConfig):
    """A stack of blocks with a named size; keys that are given (changed from their defaults) win over the size's."""

    presets: ClassVar[Mapping[str, Size]] = {}
    published: ClassVar[Published] = Published()

    size: str | None = None  # named width, depth and heads (an unknown name lists them); None: give all three
    depth: int | None = setting(None, ge=1)  # number of blocks; None: that of `size`

    def resolved(self) -> Self:
        """The same with the numbers of its size filled in."""
        return resolve(self)

    def validate(self) -> None:
        check_size(self)
        full = self.resolved()
        if full.depth is None:
            raise ValueError("depth: missing; a number or a size is required")
        if full.experts is not None and full.depth % full.experts.every:
            raise ValueError(f"experts.every: {full.experts.every} does not divide the depth {full.depth}")
        BlockConfig.validate(full)


def resolve(config: Any) -> Any:
    """A configuration with the numbers of its `size` in the place of keys that have their defaults."""
    if config.size is None:
        return config
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    preset = config.presets[config.size].items()
    return dataclasses.replace(config, **{k: v for k, v in preset if getattr(config, k) == defaults[k]})


def check_size(config: Any) -> None:
    """ValueError where a configuration names a size that its family does not have."""
    if config.size is not None and config.size not in config.presets:
        close = nearest(config.size, config.presets)
        raise ValueError(f"size: unknown size {config.size!r}{close} (known: {', '.join(config.presets)})")


def element_shape(spec: Any, key: str, path: str) -> tuple[int, ...]:
    """The shape of one example's `key`; `path` is the config key to blame where the data have none."""
    if key not in spec.elements:
        raise UserError(f"{path}: this model reads {key!r}, but the data have: {', '.join(spec.elements)}")
    return tuple(spec.elements[key]["shape"])
