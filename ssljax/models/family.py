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


@dataclasses.dataclass(frozen=True)
class TransformerConfig(BlockConfig):
    """A stack of blocks with a named size; `width`, `depth` and `heads` that are given win over those of the size."""

    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {}  # size -> (width, depth, heads)

    size: str | None = None  # named width, depth and heads (an unknown name lists them); None: give all three
    depth: int | None = setting(None, ge=1)  # number of blocks; None: that of `size`

    def resolved(self) -> Self:
        """The same with the numbers of its size filled in."""
        if self.size is None:
            return self
        preset: dict[str, Any] = dict(zip(("width", "depth", "heads"), self.presets[self.size]))
        return dataclasses.replace(self, **{k: v for k, v in preset.items() if getattr(self, k) is None})

    def validate(self) -> None:
        if self.size is not None and self.size not in self.presets:
            close = nearest(self.size, self.presets)
            raise ValueError(f"size: unknown size {self.size!r}{close} (known: {', '.join(self.presets)})")
        full = self.resolved()
        if full.depth is None:
            raise ValueError("depth: missing; a number or a size is required")
        BlockConfig.validate(full)


def element_shape(spec: Any, key: str, path: str) -> tuple[int, ...]:
    """The shape of one example's `key`; `path` is the config key to blame where the data have none."""
    if key not in spec.elements:
        raise UserError(f"{path}: this model reads {key!r}, but the data have: {', '.join(spec.elements)}")
    return tuple(spec.elements[key]["shape"])
