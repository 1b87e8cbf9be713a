"""Positions of norms and residual connections: five ways to combine attention and the feed-forward part in a block."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

Norm = Callable[[str, jax.Array], jax.Array]  # (name, x) -> normed x


class Branch(NamedTuple):
    """A residual branch of a block."""

    name: str
    compute: Callable[[jax.Array], jax.Array]  # [B, T, D] -> [B, T, D]
    drop: Callable[[jax.Array], jax.Array]  # dropout and stochastic depth, applied to the result


def pre(x: jax.Array, branches: Sequence[Branch], norm: Norm) -> jax.Array:
    """x + f(norm(x)) for each branch f in turn (Radford et al. 2019, GPT-2)."""
    for f in branches:
        x = x + f.drop(f.compute(norm(f"{f.name}_norm", x)))
    return x


def post(x: jax.Array, branches: Sequence[Branch], norm: Norm) -> jax.Array:
    """norm(x + f(x)) for each branch f in turn (Vaswani et al. 2017)."""
    for f in branches:
        x = norm(f"{f.name}_norm", x + f.drop(f.compute(x)))
    return x


def sandwich(x: jax.Array, branches: Sequence[Branch], norm: Norm) -> jax.Array:
    """x + norm(f(norm(x))) for each branch f in turn (Gemma Team 2024, Gemma 2)."""
    for f in branches:
        y = f.compute(norm(f"{f.name}_norm", x))
        x = x + f.drop(norm(f"{f.name}_norm_after", y))
    return x


def after(x: jax.Array, branches: Sequence[Branch], norm: Norm) -> jax.Array:
    """x + norm(f(x)) for each branch f in turn (OLMo Team 2025, OLMo 2)."""
    for f in branches:
        x = x + f.drop(norm(f"{f.name}_norm_after", f.compute(x)))
    return x


def parallel(x: jax.Array, branches: Sequence[Branch], norm: Norm) -> jax.Array:
    """x + f(norm(x)) + g(norm(x)), each branch with its own norm (Black et al. 2022, GPT-NeoX)."""
    return sum((f.drop(f.compute(norm(f"{f.name}_norm", x))) for f in branches), start=x)


def parallel_one(x: jax.Array, branches: Sequence[Branch], norm: Norm) -> jax.Array:
    """x + f(h) + g(h) with h = norm(x), one norm for all branches (Chowdhery et al. 2022, PaLM)."""
    h = norm(f"{branches[0].name}_norm", x)
    return sum((f.drop(f.compute(h)) for f in branches), start=x)


ARRANGEMENTS = {
    "pre": pre,
    "post": post,
    "sandwich": sandwich,
    "after": after,
    "parallel": parallel,
    "parallel_one": parallel_one,
}
