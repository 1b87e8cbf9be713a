"""Attention with linear biases (Press, Smith, Lewis 2022, "Train Short, Test Long")."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.layers.terms.base import Heads, Pairs, Term


class ALiBi(Term):
    """The term -slope |distance|, with a fixed slope per head."""

    def prepare(self, stack: nn.Module, pairs: Pairs) -> jax.Array:
        slope_Hx1x1 = jnp.asarray(slopes(self.config.known("heads")))[:, None, None]
        return -slope_Hx1x1 * jnp.abs(pairs.distance())[:, None]

    def logits(self, attention: Any, heads: Heads, state: jax.Array) -> jax.Array:
        return state


def slopes(heads: int) -> np.ndarray:
    """Slope of each head, float32 [H] (section 3)."""
    power = 2 ** math.floor(math.log2(heads))
    first = 2.0 ** (-8 / power * np.arange(1, power + 1))
    # If H is no power of two: the slopes for the power of two below H, then every second slope for the power above.
    others = 2.0 ** (-4 / power * np.arange(1, 2 * (heads - power), 2))
    return np.concatenate([first, others]).astype(np.float32)
