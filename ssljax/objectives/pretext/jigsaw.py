"""Jigsaw: in which order are the tiles of an image?

Noroozi & Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles".
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ssljax import views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.objectives.images import view_shape
from ssljax.objectives.pretext.puzzle import Puzzle


@dataclasses.dataclass(frozen=True)
class Jigsaw(Puzzle):
    """Cross-entropy of the permutation of the tiles, from the features of all of them."""

    grid: int = schema.setting(3, ge=2, le=3, doc="number of tiles along a side")
    permutations: int = schema.setting(
        100, ge=2, doc="number of permutations, chosen for large Hamming distances (algorithm 1; 1,000 in the paper)"
    )
    gap: int = schema.setting(11, ge=0, doc="pixels by which a tile is smaller than its cell; its place is random")
    normalize_tiles: bool = schema.setting(
        True,
        doc="whether each tile has mean 0 and standard deviation 1, since brightness tells the place (section 4.2)",
    )
    hidden: int = schema.setting(4096, ge=0, doc="width of a hidden layer of the classifier; 0: none")

    @property
    def number(self) -> int:
        return self.permutations

    def check(self) -> None:
        super().check()
        height, width, _ = view_shape(self.augment, self.spec)
        cell = min(height, width) // self.grid
        if self.gap >= cell:
            raise UserError(
                f"objective.gap: got {self.gap}, but a tile has a cell of {cell} pixels in images of {height} x {width}"
                f" (at most {cell - 1})"
            )
        most = math.factorial(self.grid**2)
        if self.permutations > most:
            raise UserError(f"objective.permutations: got {self.permutations}, must be at most {most}")

    def puzzle(self, keys: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        permutations = jnp.asarray(views.far_permutations(self.permutations, self.grid**2))
        tiles, label = views.jigsaw(keys, images, permutations, self.gap)
        if self.normalize_tiles:
            tiles = self._standard(tiles)
        return tiles, label

    def size(self, side: tuple[int, int]) -> tuple[int, int, int]:
        tile = min(side) // self.grid - self.gap
        return self.grid**2, tile, tile

    def _standard(self, tiles: jax.Array) -> jax.Array:
        """Tiles whose pixels will have mean 0 and standard deviation 1 after `pixels` has normalised them."""
        axes = (2, 3, 4)
        mean = jnp.mean(tiles, axes, keepdims=True)
        deviation = jnp.sqrt(jnp.var(tiles, axes, keepdims=True) + 1e-6)
        return jnp.asarray(self.mean) + jnp.asarray(self.std) * (tiles - mean) / deviation
