"""A learned choice of the patches that are masked: those whose reconstruction a teacher expects to be hard.

Wang, Song, Fan, Wang, Xie, Zhang 2023, "Hard Patches Mining for Masked Image Modeling" (HPM).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.objectives.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Adversary:
    """Hides hard patches: the student learns to order its patches by their errors, and its average chooses (HPM)."""

    share: float = setting(
        0.5, ge=0, le=1, doc="share of the masked patches that are the hardest ones, at the end of the run if it grows"
    )
    grows: bool = setting(True, doc="whether `share` grows evenly from 0 over the run (from easy to hard)")
    weight: float = setting(1.0, ge=0, doc="weight of the loss of the order of patches")
    teacher: Teacher = setting(Teacher(0.999, "constant"), doc="moving average of the student, which sees whole images")


class Order(NamedTuple):
    """The order of the masked patches of each example by difficulty; pairs of equal errors do not count.

    Attributes:
        losses: mean over pairs of -log sigma(difference of difficulties, the larger error first), [B]; 0 without pairs.
        right: share of the pairs that are in the right order, [B]; 0 without pairs.
    """

    losses: jax.Array
    right: jax.Array


def hardest(mask: jax.Array, difficulty: jax.Array, share: jax.Array, u: jax.Array) -> jax.Array:
    """Replaces a share of the masked patches by the hardest ones of the image; their number stays.

    Args:
        mask: bool [B, N], another choice of patches, of which a random part stays.
        difficulty: [B, N].
        share: share of the masked patches that are the hardest ones, float32 [B].
        u: uniform numbers [B, N].

    Returns:
        bool [B, N].
    """
    count = jnp.sum(mask, 1, keepdims=True)
    # Equally hard ones in random order: the teacher's head begins with zeros.
    is_hard = _rank(jnp.lexsort((u, -difficulty), 1)) < jnp.round(share[:, None] * count)
    return _rank(jnp.argsort(jnp.where(is_hard, 0.0, jnp.where(mask, 1 + u, 2 + u)), 1)) < count


def order_loss(difficulty: jax.Array, errors: jax.Array, mask: jax.Array) -> Order:
    """The relative loss of predicted difficulties (section 3.3): of two masked patches, which has the larger error?

    Args:
        difficulty: predictions [B, N].
        errors: errors of the patches [B, N], which have no gradient.
        mask: bool [B, N].
    """
    errors = jax.lax.stop_gradient(errors)
    larger = (errors[:, :, None] > errors[:, None, :]) & mask[:, :, None] & mask[:, None, :]  # i has the larger error
    difference = difficulty[:, :, None] - difficulty[:, None, :]
    pairs = jnp.sum(larger, (1, 2))
    mean = lambda x: jnp.sum(jnp.where(larger, x, 0.0), (1, 2)) / jnp.maximum(pairs, 1)  # noqa: E731
    return Order(mean(jax.nn.softplus(-difference)), mean(difference > 0))


def _rank(order: jax.Array) -> jax.Array:
    """The place of each column in an order of the columns, int [B, N]."""
    return jnp.argsort(order, 1)
