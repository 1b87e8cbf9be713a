"""Attention logits that depend on the query, and on how far and in which segment a key is (Transformer-XL, XLNet)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers.dense import Dense, Initializer, parameter
from ssljax.layers.roles import Role


class Relative(NamedTuple):
    """How queries and keys lie to each other."""

    table: jax.Array  # [N, D], a vector for each distance
    row: jax.Array  # int32 [B or 1, T, S], which one is that of query position - key position
    apart: jax.Array | None = None  # bool [B, T, S], whether they belong to different segments; None: nowhere


class RelativeLogits(nn.Module):
    """(q + u) k + (q + v) r + (q + w) s, with k the key, r of its distance and s of its segment, the same or another.

    Dai et al. 2019, section 3.3 (u and v are biases of each head, r is a projection of sinusoids); Yang et al. 2019,
    section 2.5 (w, s).
    """

    initializer: Initializer
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, q_BxTxHxK: jax.Array, relative: Relative, scale: float) -> tuple[jax.Array, jax.Array]:
        """The query for the keys themselves [B, T, H, K], and float32 [B, H, T, S] to add to its scaled logits."""
        q, (heads, width) = q_BxTxHxK, q_BxTxHxK.shape[2:]

        def vectors(name: str, *count: int) -> jax.Array:
            names = (*(None for _ in count), "heads")
            shape = (*count, heads * width)
            role: Role = "position" if count else "bias"
            made = parameter(self, name, nn.initializers.normal(0.02), names, shape, role=role)
            return made.reshape(*count, heads, width).astype(q.dtype)

        project = Dense(heads * width, ("embed", "heads"), False, self.initializer, self.dtype, name="distance")
        distance_NxHxK = project(relative.table).reshape(-1, heads, width)
        far = jnp.einsum("bthk,nhk->bhtn", q + vectors("distance_bias"), distance_NxHxK)
        bias = jnp.take_along_axis(far, relative.row[:, None], axis=-1)
        by_segment = jnp.einsum("bthk,shk->bhts", q + vectors("segment_bias"), vectors("segments", 2))
        if relative.apart is not None:
            bias = bias + jnp.where(relative.apart[:, None], by_segment[..., 1:], by_segment[..., :1])
        return q + vectors("content_bias"), bias.astype(jnp.float32) * scale
