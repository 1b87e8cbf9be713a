"""Disentangled attention: logits between contents and relative positions, in both directions.

He, Liu, Gao, Chen 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention"; logarithmic buckets of distances
as in DeBERTa v2.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.schema import setting
from ssljax.layers.dense import parameter
from ssljax.layers.terms.base import Heads, Pairs, Term


@dataclasses.dataclass(frozen=True)
class DisentangledConfig:
    """Disentangled attention. The sum of logits is scaled by 1/sqrt(head width x (1 + number of terms))."""

    terms: tuple[Literal["c2p", "p2c"], ...] = setting(
        ("c2p", "p2c"),
        doc='terms of the logits: "c2p", content to position: the query of a token times the key of the distance; '
        '"p2c", position to content: the key of a token times the query of the distance',
    )
    buckets: int | None = setting(
        256,
        ge=2,
        doc="number of buckets of distances per side: one per distance for the first half, logarithmic beyond; None: "
        "one per distance",
    )
    max_distance: int = setting(512, ge=2, doc="distance in tokens at which the last bucket ends")
    shared: bool = setting(
        True, doc="project the vectors of distances by the q and k maps of the tokens; false: by two separate maps"
    )
    norm: bool = setting(True, doc="normalise the vectors of distances")

    def validate(self) -> None:
        if self.buckets is not None and self.max_distance <= self.buckets // 2 + 1:
            least = self.buckets // 2 + 2
            raise ValueError(
                f"max_distance: got {self.max_distance}, must be at least {least} with {self.buckets} buckets"
            )

    @property
    def span(self) -> int:
        """Number of vectors of distances per side."""
        return self.buckets or self.max_distance

    def rows(self, distance: np.ndarray) -> np.ndarray:
        """Row in the table [2 span, D] for each distance (query position - key position, eq. 3)."""
        bucket = distance if self.buckets is None else log_buckets(distance, self.buckets, self.max_distance)
        return np.clip(bucket + self.span, 0, 2 * self.span - 1)


@dataclasses.dataclass(frozen=True)
class DisentangledKeys:
    """The configuration keys of the scheme, inherited by `BlockConfig`."""

    disentangled: DisentangledConfig | None = setting(
        None, doc="disentangled attention (DeBERTa), a group of keys; None: ordinary attention"
    )


class Distances(NamedTuple):
    """Learned vectors of distances, shared by all layers."""

    table_RxD: jax.Array  # R = 2 span
    row_BxTxS: jax.Array  # int32 [B or 1, T, S], row of the table for each pair


class Disentangled(Term):
    """Products of queries with keys of distances, and of keys with queries of distances (equation 4).

    The vectors of distances (parameter `distances`, and a norm) belong to the stack. Each layer projects them with its
    own maps of queries and keys, or with the separate maps `distance_q` and `distance_k`.
    """

    @property
    def settings(self) -> DisentangledConfig:
        """The group of keys of the scheme."""
        settings = self.config.disentangled
        assert settings is not None
        return settings

    @property
    def products(self) -> int:
        return len(self.settings.terms)

    def check(self) -> None:
        c = self.config
        if c.rope_theta is not None or c.qk_norm:
            other = "rope_theta" if c.rope_theta is not None else "qk_norm"
            raise ValueError(f"{other}: got {getattr(c, other)}, which disentangled attention excludes")

    def prepare(self, stack: nn.Module, pairs: Pairs) -> Distances:
        c, d = self.config, self.settings
        distance_N = pairs.all_distances()
        row_BxTxS = jnp.asarray(d.rows(distance_N))[-pairs.distance() - distance_N[0]]
        init, shape = nn.initializers.normal(0.02), (2 * d.span, c.known("width"))
        table_RxD = parameter(stack, "distances", init, ("positions", "embed"), shape, role="position")
        return Distances(c.new_norm("distances_norm")(table_RxD) if d.norm else table_RxD, row_BxTxS)

    def logits(self, attention: Any, heads: Heads, state: Distances) -> jax.Array:
        c, d = self.config, self.settings
        to_q, to_k = heads.to_q, heads.to_k
        if not d.shared:
            to_k = attention.projection("distance_k", c.groups, "kv", "k")
            to_q = attention.projection("distance_q", c.known("heads"), "heads", "q")
        k_RxGxK = to_k(state.table_RxD) if "c2p" in d.terms else None
        q_RxHxK = to_q(state.table_RxD) if "p2c" in d.terms else None
        return heads.scale * position_logits(heads.q_BxTxHxK, heads.k_BxSxGxK, k_RxGxK, q_RxHxK, state.row_BxTxS)

    def flops(self, tokens: int) -> float:
        # Each token is multiplied with every distance. The projection of the distances, once per batch, is not counted.
        inner = self.config.head_width * self.config.known("heads")
        return self.products * 2 * self.settings.span * tokens * inner


def log_buckets(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Signed bucket of each distance: one per distance up to buckets / 2, logarithmic from there to `max_distance`.

    Args:
        distance: int, any shape.
        buckets: number of buckets per side.
        max_distance: distance at which the last bucket ends.
    """
    half = buckets // 2
    far = np.maximum(np.abs(distance), half + 1)
    # float32 as in the published models: the rounding decides at which distance a bucket begins.
    whole = np.log(np.float32((max_distance - 1) / half))
    share = np.log(far.astype(np.float32) / np.float32(half)) / whole
    large = np.ceil(share * np.float32(half - 1)).astype(np.int64) + half
    return np.where(np.abs(distance) <= half, distance, np.sign(distance) * large)


def position_logits(
    q_BxTxHxK: jax.Array,
    k_BxSxGxK: jax.Array,
    k_RxGxK: jax.Array | None,
    q_RxHxK: jax.Array | None,
    row_BxTxS: jax.Array,
) -> jax.Array:
    """The sum of the terms that are added to q k^T (equation 4, before scaling); at least one must be given.

    Args:
        q_BxTxHxK: queries of contents.
        k_BxSxGxK: keys of contents; head h uses group h // (H / G).
        k_RxGxK: keys of distances, for content to position; None: without this term.
        q_RxHxK: queries of distances, for position to content; None: without this term.
        row_BxTxS: int [B or 1, T, S], row of the distance of each pair.

    Returns:
        float32 [B, H, T, S].
    """
    repeats = q_BxTxHxK.shape[2] // k_BxSxGxK.shape[2]
    terms = []
    if k_RxGxK is not None:
        k_RxHxK = jnp.repeat(k_RxGxK, repeats, axis=1)
        every_BxHxTxR = jnp.einsum("bthk,rhk->bhtr", q_BxTxHxK, k_RxHxK, preferred_element_type=jnp.float32)
        terms.append(jnp.take_along_axis(every_BxHxTxR, row_BxTxS[:, None], axis=3, mode="clip"))
    if q_RxHxK is not None:
        k_BxSxHxK = jnp.repeat(k_BxSxGxK, repeats, axis=2)
        every_BxHxSxR = jnp.einsum("bshk,rhk->bhsr", k_BxSxHxK, q_RxHxK, preferred_element_type=jnp.float32)
        by_key = jnp.take_along_axis(every_BxHxSxR, row_BxTxS.swapaxes(1, 2)[:, None], axis=3, mode="clip")
        terms.append(by_key.swapaxes(2, 3))
    return functools.reduce(jnp.add, terms)
