"""Rotation: by how many quarter turns is an image rotated?

Gidaris, Singh, Komodakis 2018, "Unsupervised Representation Learning by Predicting Image Rotations".
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ssljax import views
from ssljax.objectives.pretext.puzzle import Puzzle


@dataclasses.dataclass(frozen=True)
class Rotation(Puzzle):
    """Cross-entropy of the four rotations of an image, mean over them (eq. 3)."""

    answers: ClassVar[int] = 4
    each: ClassVar[bool] = True

    def puzzle(self, keys: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        made = views.rotations(images)
        return made, jnp.broadcast_to(jnp.arange(4), made.shape[:2])

    def size(self, side: tuple[int, int]) -> tuple[int, int, int]:
        return 4, *side
