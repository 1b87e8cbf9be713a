"""What families share: named sizes, and what an encoder returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax

from ssljax.base.errors import UserError, nearest
from ssljax.base.schema import setting
from ssljax.layers.block import BlockConfig


class Encoded(NamedTuple):
    """What an encoder returns: vectors of the parts, and one vector of the whole."""

    tokens: jax.Array  # [B, T, D], after the final norm
    pooled: jax.Array  # [B, D]
    states: jax.Array | None = None  # [1 + layers, B, T, D] where asked for: what each block read, and the last made
    cache: Any = None  # what attention remembers, where it was given one
    router: jax.Array | None = None  # float32 logits [layers with experts, B, T, E]
    prefix: jax.Array | None = None  # [B, P, D], tokens before those of the parts (class token, registers)


Size = Mapping[str, Any]  # what a named size sets


def preset(width: int, depth: int, heads: int, **more: Any) -> Size:
    """A named size of a family: its width, number of blocks and heads, and whatever else belongs to it."""
    return {"width": width, "depth": depth, "heads": heads, **more}


@dataclasses.dataclass(frozen=True)
class TransformerConfig(BlockConfig):
    """A stack of blocks with a named size; keys that are given (changed from their defaults) win over the size's."""

    presets: ClassVar[Mapping[str, Size]] = {}

    size: str | None = None  # named width, depth and heads (an unknown name lists them); None: give all three
    depth: int | None = setting(None, ge=1)  # number of blocks; None: that of `size`

    def resolved(self) -> Self:
        """The same with the numbers of its size filled in."""
        if self.size is None:
            return self
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        preset = self.presets[self.size].items()
        return dataclasses.replace(self, **{k: v for k, v in preset if getattr(self, k) == defaults[k]})

    def validate(self) -> None:
        if self.size is not None and self.size not in self.presets:
            close = nearest(self.size, self.presets)
            raise ValueError(f"size: unknown size {self.size!r}{close} (known: {', '.join(self.presets)})")
        full = self.resolved()
        if full.depth is None:
            raise ValueError("depth: missing; a number or a size is required")
        if full.experts is not None and full.depth % full.experts.every:
            raise ValueError(f"experts.every: {full.experts.every} does not divide the depth {full.depth}")
        BlockConfig.validate(full)


def element_shape(spec: Any, key: str, path: str) -> tuple[int, ...]:
    """The shape of one example's `key`; `path` is the config key to blame where the data have none."""
    if key not in spec.elements:
        raise UserError(f"{path}: this model reads {key!r}, but the data have: {', '.join(spec.elements)}")
    return tuple(spec.elements[key]["shape"])
