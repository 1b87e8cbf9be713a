"""Disentangled attention: content and relative position attend to each other apart.

He, Liu, Gao, Chen 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention"; logarithmic buckets of distances
as in its second version.
"""

import dataclasses
import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.schema import setting


@dataclasses.dataclass(frozen=True)
class DisentangledConfig:
    """How positions enter the logits, which are then scaled by 1/sqrt(head width x (1 + number of terms))."""

    # content to position: the query with the key of the distance; position to content: the key with its query
    terms: tuple[Literal["c2p", "p2c"], ...] = ("c2p", "p2c")
    # of distances to either side, exact up to half of them and logarithmic beyond; None: each distance is its own
    buckets: int | None = setting(256, ge=2)
    max_distance: int = setting(512, ge=2)  # where the last bucket ends
    shared: bool = True  # a layer projects distances as it does contents; false: with two maps of their own
    norm: bool = True  # of the learned vectors of distances

    def validate(self) -> None:
        if self.buckets is not None and self.max_distance <= self.buckets // 2 + 1:
            least = self.buckets // 2 + 2
            raise ValueError(
                f"max_distance: got {self.max_distance}, must be at least {least} with {self.buckets} buckets"
            )

    @property
    def span(self) -> int:
        """How many distances to one side have a vector."""
        return self.buckets or self.max_distance

    def rows(self, distance: np.ndarray) -> np.ndarray:
        """Where in the table, which has 2 span rows, the vector of query position - key position stands (eq. 3)."""
        near = distance if self.buckets is None else log_buckets(distance, self.buckets, self.max_distance)
        return np.clip(near + self.span, 0, 2 * self.span - 1)


class Distances(NamedTuple):
    """What all layers of a stack know of positions."""

    table: jax.Array  # [2 span, D]
    rows: jax.Array  # int32 [B or 1, T, S], which of them each pair has


def log_buckets(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of a distance, of its sign: itself up to buckets / 2, logarithmic from there to `max_distance`."""
    half = buckets // 2
    far = np.maximum(np.abs(distance), half + 1)
    # float32, as the models that were trained with it: the edges of buckets depend on it.
    whole = np.log(np.float32((max_distance - 1) / half))
    share = np.log(far.astype(np.float32) / np.float32(half)) / whole
    large = np.ceil(share * np.float32(half - 1)).astype(np.int64) + half
    return np.where(np.abs(distance) <= half, distance, np.sign(distance) * large)


def position_logits(
    q: jax.Array, k: jax.Array, distance_k: jax.Array | None, distance_q: jax.Array | None, rows: jax.Array
) -> jax.Array:
    """The terms that are added to q k^T (equation 4, without its scale), at least one of two.

    Args:
        q: [B, T, H, K].
        k: [B, S, G, K]; head h uses group h // (H / G).
        distance_k: [R, G, K] keys of distances, for content to position; None: that term is left out.
        distance_q: [R, H, K] queries of distances, for position to content; None: that term is left out.
        rows: int [B or 1, T, S], which distance a pair has.

    Returns:
        float32 [B, H, T, S].
    """
    repeats = q.shape[2] // k.shape[2]
    terms = []
    if distance_k is not None:
        keys = jnp.repeat(distance_k, repeats, axis=1)
        every = jnp.einsum("bthk,rhk->bhtr", q, keys, preferred_element_type=jnp.float32)
        terms.append(jnp.take_along_axis(every, rows[:, None], axis=3, mode="clip"))
    if distance_q is not None:
        contents = jnp.repeat(k, repeats, axis=2)
        every = jnp.einsum("bshk,rhk->bhsr", contents, distance_q, preferred_element_type=jnp.float32)
        by_key = jnp.take_along_axis(every, rows.swapaxes(1, 2)[:, None], axis=3, mode="clip")
        terms.append(by_key.swapaxes(2, 3))
    return functools.reduce(jnp.add, terms)


def logit_scale(width: int, terms: int) -> float:
    """1/sqrt(width x (1 + terms)): the logits are sums of so many products."""
    return 1 / math.sqrt(width * (1 + terms))
