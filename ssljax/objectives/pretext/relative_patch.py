"""Relative patch: which of the eight neighbours of a patch is another patch?

Doersch, Gupta, Efros 2015, "Unsupervised Visual Representation Learning by Context Prediction".
"""

import dataclasses
from typing import ClassVar

import jax

from ssljax import views
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.objectives.images import view_shape
from ssljax.objectives.pretext.puzzle import Puzzle
from ssljax.views.puzzles import neighbour_extent


@dataclasses.dataclass(frozen=True)
class RelativePatch(Puzzle):
    """Cross-entropy of the place of the second patch, from the features of both."""

    answers: ClassVar[int] = 8

    patch: int = schema.setting(96, gt=0, doc="side of a patch in pixels")
    gap: int = schema.setting(48, ge=0, doc="pixels between neighbouring patches; without a gap, edges tell the answer")
    jitter: int = schema.setting(7, ge=0, doc="largest displacement of a patch in pixels")
    drop_colours: bool = schema.setting(
        True,
        doc="whether noise replaces all channels but one of both patches; lens colours tell the place (section 3.1)",
    )
    hidden: int = schema.setting(4096, ge=0, doc="width of a hidden layer of the classifier; 0: none")

    def check(self) -> None:
        super().check()
        height, width, _ = view_shape(self.augment, self.spec)
        extent = neighbour_extent(self.patch, self.gap, self.jitter)
        if extent > min(height, width):
            raise UserError(
                f"objective.patch: {self.patch} with a gap of {self.gap} and a jitter of {self.jitter} needs {extent} "
                f"pixels, but images have {height} x {width}; 3 patch + 2 gap + 2 jitter must be at most "
                f"{min(height, width)}"
            )

    def puzzle(self, keys: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        patches, label = views.random_neighbours(views.fold_in(keys, 0), images, self.patch, self.gap, self.jitter)
        if self.drop_colours:
            patches = views.drop_colours(views.fold_in(keys, 1), patches)
        return patches, label

    def size(self, side: tuple[int, int]) -> tuple[int, int, int]:
        return 2, self.patch, self.patch
