"""Rotation: by how many quarter turns is an image rotated?

Gidaris, Singh, Komodakis 2018, "Unsupervised Representation Learning by Predicting Image Rotations".
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ssljax import views
from ssljax.base.errors import UserError
from ssljax.objectives.images import view_shape
from ssljax.objectives.pretext.puzzle import Puzzle


@dataclasses.dataclass(frozen=True)
class Rotation(Puzzle):
    """Cross-entropy of the four rotations of an image, mean over them (eq. 3)."""

    answers: ClassVar[int] = 4
    each: ClassVar[bool] = True

    def check(self) -> None:
        super().check()
        height, width, _ = view_shape(self.augment, self.spec)
        if height != width:
            raise UserError(
                f"objective.augment.size: images of {height} x {width} cannot be turned; give the side of a square "
                "here, or as data.image_size"
            )
        if self.augment.augment.rotate:
            raise UserError(
                f"objective.augment.augment.rotate: got {self.augment.augment.rotate:g}, must be 0: the "
                "objective asks for turns"
            )

    def puzzle(self, keys: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        made = views.rotations(images)
        return made, jnp.broadcast_to(jnp.arange(4), made.shape[:2])

    def size(self, side: tuple[int, int]) -> tuple[int, int, int]:
        return 4, *side
