"""Logits that depend on the query, the distance and the segment of a key (Transformer-XL, XLNet)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.layers.dense import Dense, Initializer, parameter
from ssljax.layers.positions import sinusoidal
from ssljax.layers.roles import Role
from ssljax.layers.terms.base import Heads, Pairs, Term


class Relative(NamedTuple):
    """Distances and segments of all pairs, shared by all layers."""

    table_NxD: jax.Array  # sinusoids, one vector per distance
    row_BxTxS: jax.Array  # int32 [B or 1, T, S], row of the table for the distance query position - key position
    differs_BxTxS: jax.Array | None = None  # bool, True: different segments; None: all tokens share a segment


class XLNet(Term):
    """The term u k + (q + v) r + (q + w) s, with q the query and k the key.

    r is a projection of the sinusoids of the distance; u and v are biases of each head (Dai et al. 2019, section 3.3).
    s is one of two vectors, for keys in the same or in another segment, and w its bias (Yang et al. 2019, section 2.5).
    Each layer has these parameters in its submodule `relative`.
    """

    def check(self) -> None:
        width = self.config.known("width")
        if width % 2:
            raise ValueError(f"position_bias: the sinusoids of 'xlnet' need an even width, got {width}")

    def prepare(self, stack: nn.Module, pairs: Pairs) -> Relative:
        q_BxT, k_BxS = pairs.positions()
        table_NxD = sinusoidal(np.arange(1 - pairs.keys, pairs.keys), self.config.known("width"))
        row_BxTxS = q_BxT[:, :, None] - k_BxS[:, None] + pairs.keys - 1
        segment_BxT = pairs.layout.segments
        differs = None if segment_BxT is None else segment_BxT[:, :, None] != segment_BxT[:, None, : pairs.keys]
        return Relative(jnp.asarray(table_NxD, self.config.dtype), row_BxTxS, differs)

    def logits(self, attention: Any, heads: Heads, state: Relative) -> jax.Array:
        return RelativeLogits(self.config.initializer(), self.config.dtype, name="relative")(heads, state)

    def flops(self, tokens: int) -> float:
        return tokens * (2 * tokens - 1) * self.config.head_width * self.config.known("heads")


class RelativeLogits(nn.Module):
    """The term of one layer, with its parameters."""

    initializer: Initializer
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, layer: Heads, relative: Relative) -> jax.Array:
        """Returns the term, float32 [B, H, T, S], multiplied by the scale of q k^T."""
        q_BxTxHxK, k_BxSxGxK = layer.q_BxTxHxK, layer.k_BxSxGxK
        heads, width = q_BxTxHxK.shape[2:]

        def vectors(name: str, *count: int) -> jax.Array:
            names = (*(None for _ in count), "heads")
            role: Role = "position" if count else "bias"
            shape = (*count, heads * width)
            flat = parameter(self, name, nn.initializers.normal(0.02), names, shape, role=role)
            return flat.reshape(*count, heads, width).astype(q_BxTxHxK.dtype)

        project = Dense(heads * width, ("embed", "heads"), False, self.initializer, self.dtype, name="distance")
        r_NxHxK = project(relative.table_NxD).reshape(-1, heads, width)
        far_BxHxTxN = jnp.einsum("bthk,nhk->bhtn", q_BxTxHxK + vectors("distance_bias"), r_NxHxK)
        bias_BxHxTxS = jnp.take_along_axis(far_BxHxTxN, relative.row_BxTxS[:, None], axis=-1)
        segment_BxHxTx2 = jnp.einsum("bthk,shk->bhts", q_BxTxHxK + vectors("segment_bias"), vectors("segments", 2))
        if relative.differs_BxTxS is not None:
            same, other = segment_BxHxTx2[..., :1], segment_BxHxTx2[..., 1:]
            bias_BxHxTxS = bias_BxHxTxS + jnp.where(relative.differs_BxTxS[:, None], other, same)
        k_BxSxHxK = jnp.repeat(k_BxSxGxK, heads // k_BxSxGxK.shape[2], axis=2)
        u_HxK = vectors("content_bias")
        content_BxHxS = jnp.einsum("hk,bshk->bhs", u_HxK, k_BxSxHxK, preferred_element_type=jnp.float32)
        return layer.scale * (bias_BxHxTxS.astype(jnp.float32) + content_BxHxS[:, :, None])
