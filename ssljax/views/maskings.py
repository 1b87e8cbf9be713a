"""Strategies that decide which patches of an image, or tokens of a sequence, are hidden and which are seen.

A strategy puts the places of an example in an order: the first ones are hidden and to be predicted, the next ones are
seen. So every strategy hides an exact number of places, and an ablation is one key.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.base.schema import setting
from ssljax.views.keys import fold_in, uniforms
from ssljax.views.masks import random_blocks, visible_patches

_FEWEST, _MOST = 64, 1024  # blocks of an example that are drawn; places that none covers come last


class Partition(NamedTuple):
    """The places that are predicted and those that are seen, bool [B, N] each; none is both, some may be neither."""

    target: jax.Array
    visible: jax.Array


@dataclasses.dataclass(frozen=True)
class Masking:
    """The keys of every strategy."""

    has_size: ClassVar[bool] = False  # True: the strategy hides blocks of some size, which may grow

    grows: tuple[Literal["ratio", "size"], ...] = setting(
        (), doc="what grows at the start of the run: the 'ratio' of hidden patches, the 'size' of blocks; (): nothing"
    )
    start: float = setting(0.3, gt=0, le=1, doc="factor of what grows at the first step; read if something grows")
    ramp: float = setting(
        0.5,
        gt=0,
        le=1,
        doc="share of the run after which the factor, which grows evenly, is 1; read if something grows",
    )

    def order(self, keys: jax.Array, grid: tuple[int, int], ratio: float, size: jax.Array) -> jax.Array:
        """Returns numbers [B, N] by whose size places are hidden, the smallest first.

        Args:
            keys: random keys [B].
            grid: rows and columns of the places, N = rows * columns in raster order; a sequence has one row.
            ratio: the largest share of hidden places.
            size: factor of the size of blocks, a scalar.
        """
        raise NotImplementedError

    def last(self) -> Self:
        """Returns the strategy as it is when nothing grows any more."""
        return dataclasses.replace(self, grows=())

    def seen(self, places: int, ratio: float) -> int:
        """Returns the number of places that are seen, with the whole share of hidden places."""
        return visible_patches(places, ratio)

    def __call__(
        self, keys: jax.Array, grid: tuple[int, int], ratio: float, progress: jax.Array | float = 1.0
    ) -> Partition:
        """Hides round(ratio * N) places of each example.

        Args:
            keys: random keys [B].
            grid: rows and columns of the places.
            ratio: share of hidden places.
            progress: share of the run that is done.
        """
        places = grid[0] * grid[1]
        factor = self.start + (1 - self.start) * jnp.minimum(jnp.asarray(progress, jnp.float32) / self.ramp, 1.0)
        size = factor if "size" in self.grows else jnp.float32(1)
        rank = jnp.argsort(jnp.argsort(self.order(keys, grid, ratio, size), 1), 1)
        whole = places - visible_patches(places, ratio)
        hidden: Any = jnp.maximum(jnp.round(factor * whole), 1) if "ratio" in self.grows else whole
        unseen = whole + self.seen(places, ratio)  # beyond: too far away to be seen
        return Partition(rank < hidden, (rank >= hidden) & (rank < unseen))

    def check(self, objective: str, places: int, ratio: float) -> None:
        """Raises a `UserError` if the strategy does not fit N places; `objective` is the config path of the key."""
        if "size" in self.grows and not self.has_size:
            raise UserError(f"{objective}.grows: got 'size', but only 'blocks' have a size that could grow")
        if not 1 <= (found := self.seen(places, ratio)) <= visible_patches(places, ratio):
            raise UserError(
                f"{objective}.near: shows {found} of {places} patches, must be at least 1 and at most the "
                f"{visible_patches(places, ratio)} that are not hidden"
            )


@dataclasses.dataclass(frozen=True)
class RandomMasking(Masking):
    """A uniform subset is hidden (He et al. 2022, section 3)."""

    def order(self, keys: jax.Array, grid: tuple[int, int], ratio: float, size: jax.Array) -> jax.Array:
        return -uniforms(keys, grid[0] * grid[1])  # those of the smallest numbers are seen, as in `random_patch_mask`


@dataclasses.dataclass(frozen=True)
class BlockMasking(Masking):
    """Rectangles are hidden, one after another, until their number is reached; the last one is cut.

    Large blocks hide one region (block masking), small ones several (multi-block masking, after Assran et al. 2023).
    Should a thousand of them be too few, single places fill up the number.
    """

    has_size: ClassVar[bool] = True

    scale: tuple[float, float] = setting((0.15, 0.2), gt=0, le=1, doc="range of the share of the patches in a block")
    aspect: tuple[float, float] = setting((0.75, 1.5), gt=0, doc="range of height / width of a block")

    def validate(self) -> None:
        for name in ("scale", "aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: got {(low, high)}, the first number must be at most the second")

    def order(self, keys: jax.Array, grid: tuple[int, int], ratio: float, size: jax.Array) -> jax.Array:
        places = grid[0] * grid[1]
        number = self._number(places, ratio)
        scale = (self.scale[0] * size, self.scale[1] * size)
        blocks = random_blocks(fold_in(keys, 0), grid, number, scale, self.aspect)  # [B, M, N]
        first = jnp.where(blocks.any(1), jnp.argmax(blocks, 1), number)
        raster = jnp.broadcast_to(jnp.arange(places) / places, first.shape)
        within = jnp.where(first < number, raster, uniforms(fold_in(keys, 1), places))
        return first + within

    def _number(self, places: int, ratio: float) -> int:
        """Number of blocks that are drawn: twice as many as the smallest ones need on average for the share."""
        least = max(1 / places, self.scale[0] * (self.start if "size" in self.grows else 1.0))
        needed = 1 if least >= 1 else math.ceil(2 * math.log(1 - ratio) / math.log(1 - least))
        return min(_MOST, max(_FEWEST, needed))


@dataclasses.dataclass(frozen=True)
class PartMasking(Masking):
    """One part is predicted from another one (LeCun): each example has one of `kinds`, all with the same probability.

    Columns are the time: the 'future' are the last columns, the 'past' the first ones. 'top' and 'bottom' are rows;
    'occluded' is a region around a random patch. A column or row that is hidden in part is so from its first patch on.
    """

    kinds: tuple[Literal["future", "past", "top", "bottom", "occluded"], ...] = setting(
        ("future", "past", "top", "bottom", "occluded"), doc="what is predicted; several: any part from any other"
    )
    near: float | None = setting(
        None,
        gt=0,
        lt=1,
        doc="share of the patches that are seen, those next to the hidden ones (the recent past); None: all others",
    )

    def validate(self) -> None:
        if not self.kinds:
            raise ValueError("kinds: is empty, must name at least one part")

    def seen(self, places: int, ratio: float) -> int:
        return super().seen(places, ratio) if self.near is None else round(self.near * places)

    def order(self, keys: jax.Array, grid: tuple[int, int], ratio: float, size: jax.Array) -> jax.Array:
        rows, columns = grid
        u = uniforms(keys, 3)
        row, column = (x.reshape(-1) for x in jnp.indices(grid))
        # Rectangles around the centre, with the sides of the grid; the corners of each come last, so that the region is
        # one piece.
        centre = (jnp.floor(x * n).astype(jnp.int32) for x, n in ((u[:, 1:2], rows), (u[:, 2:3], columns)))
        up, aside = (jnp.abs(x - c) * n for x, c, n in zip((row, column), centre, (columns, rows)))
        distance = jnp.argsort(jnp.lexsort((up + aside, jnp.maximum(up, aside)), 1), 1)
        orders = {
            "future": (columns - 1 - column) * rows + row,
            "past": column * rows + row,
            "top": row * columns + column,
            "bottom": (rows - 1 - row) * columns + column,
            "occluded": distance,
        }
        made = jnp.stack([jnp.broadcast_to(orders[kind], distance.shape) for kind in self.kinds], 1)
        kind = jnp.floor(u[:, 0] * len(self.kinds)).astype(jnp.int32)
        return jnp.take_along_axis(made, kind[:, None, None], 1)[:, 0]
