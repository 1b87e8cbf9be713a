"""The protocol of a position scheme: a term that is added to the logits of self-attention."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.layers.positions import Layout


class Pairs(NamedTuple):
    """The queries and the keys of self-attention, the same in all layers of a stack."""

    queries: int  # T, the number of queries
    keys: int  # S, the number of keys
    causal: bool  # keys after their query are always masked
    layout: Layout = Layout()
    start: jax.Array | None = None  # int32 [B], the slot of the first query in a cache; None: queries begin with keys

    def distance(self) -> jax.Array:
        """Distance from each query to each key in tokens, int32 [B or 1, T, S]; negative for earlier keys."""
        first = jnp.zeros(1, jnp.int32) if self.start is None else self.start
        return jnp.arange(self.keys) - first[:, None, None] - jnp.arange(self.queries)[:, None]

    def all_distances(self) -> np.ndarray:
        """All values that `distance` can take, int [2 max(T, S) - 1], ascending."""
        length = max(self.queries, self.keys)
        return np.arange(1 - length, length)

    def positions(self) -> tuple[jax.Array, jax.Array]:
        """Positions of the queries, int [B or 1, T], and of the keys, int [B or 1, S]."""
        given = self.layout.positions
        q_BxT = jnp.arange(self.queries)[None] if given is None else given
        return q_BxT, q_BxT[:, : self.keys] if self.start is None else jnp.arange(self.keys)[None]


class Heads(NamedTuple):
    """The queries and the keys of one layer, after norms and rotation."""

    q_BxTxHxK: jax.Array
    k_BxSxGxK: jax.Array  # head h uses group h // (H / G)
    scale: float  # factor of q k^T
    to_q: Callable[[jax.Array], jax.Array]  # the layer's projection of queries, [..., D] -> [..., H, K]
    to_k: Callable[[jax.Array], jax.Array]  # the layer's projection of keys, [..., D] -> [..., G, K]


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of attention logits; this one adds nothing.

    A scheme subclasses it and overrides `logits`, and `prepare` where layers share something. Both are called while
    the module that they get is built, so they may declare parameters on it (`ssljax.layers.dense.parameter`) and
    submodules (by `name=`): `prepare` on the stack, `logits` on the attention of each layer.
    """

    config: Any  # the `BlockConfig` of the stack, which lists the keys of all terms and so stands above them

    @property
    def products(self) -> int:
        """Number of products of queries or keys that the term adds to q k^T; the default scale shrinks with it."""
        return 0

    def check(self) -> None:
        """Raises ValueError ("key: ...") if the configuration excludes the term."""

    def prepare(self, stack: nn.Module, pairs: Pairs) -> Any:
        """Returns what all layers share, a pytree of arrays. Called once per stack."""

    def logits(self, attention: Any, heads: Heads, state: Any) -> jax.Array | None:
        """Returns the term [B or 1, H, T, S], added to the scaled (mixed, capped) q k^T; None: nothing.

        Args:
            attention: the attention module of the layer.
            heads: queries and keys of the layer.
            state: the result of `prepare`.
        """

    def flops(self, tokens: int) -> float:
        """Multiply-adds per layer for a sequence of `tokens`."""
        return 0.0


def logit_scale(width: int, products: int = 0) -> float:
    """Default scale of logits: 1/sqrt(width (1 + products)), `products` being added to q k^T (He et al. 2021)."""
    return 1 / math.sqrt(width * (1 + products))
