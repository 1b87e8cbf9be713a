"""The protocol of a position scheme: a term added to the logits of self-attention."""

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
    """Numbers and positions of the queries and keys of self-attention; all layers of a stack share them."""

    queries: int  # T, the number of queries
    keys: int  # S, the number of keys
    causal: bool  # True: the mask forbids all keys after the query
    layout: Layout = Layout()
    start: jax.Array | None = None  # int32 [B], slot of the first query in a cache; None: slot 0

    def distance(self) -> jax.Array:
        """Key position minus query position in tokens, int32 [B or 1, T, S]; negative for earlier keys."""
        first = jnp.zeros(1, jnp.int32) if self.start is None else self.start
        return jnp.arange(self.keys) - first[:, None, None] - jnp.arange(self.queries)[:, None]

    def all_distances(self) -> np.ndarray:
        """All values that `distance` can take, int [2 max(T, S) - 1], ascending."""
        length = max(self.queries, self.keys)
        return np.arange(1 - length, length)

    def positions(self) -> tuple[jax.Array, jax.Array]:
        """Positions of the queries, int [B or 1, T], and of the keys, int [B or 1, S]."""
        positions = self.layout.positions
        q_BxT = jnp.arange(self.queries)[None] if positions is None else positions
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
    """A term of attention logits. This base class adds nothing.

    A scheme subclasses it and overrides `logits`, and `prepare` if layers share a computation. Both are called inside a
    compact method of the module that they receive (`prepare`: the stack, `logits`: the attention of a layer), so they
    may declare parameters (`ssljax.layers.dense.parameter`) and submodules (with `name=`) on it.
    """

    config: Any  # the `BlockConfig` of the stack, which lists the keys of all terms and so stands above them

    @property
    def products(self) -> int:
        """Number of products (queries or keys with vectors of positions) in the term, for `logit_scale`."""
        return 0

    def check(self) -> None:
        """Raises ValueError ("key: ...") if the configuration excludes the term."""

    def prepare(self, stack: nn.Module, pairs: Pairs) -> Any:
        """Returns the state that all layers share, a pytree of arrays. Called once per call of the stack.

        Args:
            stack: the stack module.
            pairs: queries and keys.
        """

    def logits(self, attention: Any, heads: Heads, state: Any) -> jax.Array | None:
        """Returns the term [B or 1, H, T, S], which is added to q k^T after scale, head mixing and cap; None: no term.

        Args:
            attention: the attention module of the layer.
            heads: queries and keys of the layer.
            state: the result of `prepare`.
        """

    def flops(self, tokens: int) -> float:
        """Multiply-adds of the term in one layer for a sequence of `tokens` tokens."""
        return 0.0


def logit_scale(width: int, products: int = 0) -> float:
    """The default factor of q k^T, 1/sqrt(width (1 + products)) (He et al. 2021, DeBERTa).

    Args:
        width: width of a head.
        products: number of products that position terms add to q k^T.
    """
    return 1 / math.sqrt(width * (1 + products))
