"""Feed-forward parts of which each token uses a few: mixtures of experts."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.layers.dense import Initializer, parameter


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """How many experts there are and which tokens go where."""

    count: int = setting(8, ge=1)
    top_k: int = setting(2, ge=1)  # experts that a token uses (Mixtral: 2, Switch Transformers: 1)
    normalize: bool = True  # weights of the chosen experts sum to 1 (Mixtral); false: they are the router's (Switch)
    # tokens of an example that an expert takes, as a multiple of an even share; later ones pass by. None: no limit
    capacity: float | None = setting(None, gt=0)
    slots: int | None = setting(None, ge=1)  # that limit as a number of tokens
    balance: float = setting(0.01, ge=0)  # coefficient of the loss that evens out their shares (Fedus 2022: 0.01)
    z_loss: float = setting(0.001, ge=0)  # that of the square of the router's log-partition (Zoph 2022: 0.001)
    every: int = setting(1, ge=1)  # every n-th block has experts, the others are dense (Switch Transformers: 2)
    place: int | None = setting(None, ge=0)  # which one of n blocks that is, counted from 0; None: the last

    def validate(self) -> None:
        if self.top_k > self.count:
            raise ValueError(f"top_k: got {self.top_k}, must be at most the {self.count} experts")
        if self.capacity is not None and self.slots is not None:
            raise ValueError("slots: give either this or capacity")
        if self.place is not None and self.place >= self.every:
            raise ValueError(f"place: got {self.place}, must be below every, which is {self.every}")

    def at(self, block: int) -> bool:
        """Has this block experts?"""
        return block % self.every == (self.every - 1 if self.place is None else self.place)


class Experts(nn.Module):
    """Mixture of feed-forward experts (Shazeer 2017; Fedus 2022; Jiang 2024).

    Without a capacity tokens are sorted by expert and multiplied by `jax.lax.ragged_dot`: no token is dropped. With one
    they are gathered into [B, E, C, D], which splits over the mesh axis `expert`; tokens of an example compete among
    themselves, first choices before second ones and earlier tokens before later ones, so examples stay independent.
    """

    config: ExpertsConfig
    hidden: int
    act: Callable[[jax.Array], jax.Array]
    gated: bool
    initializer: Initializer
    initializer_out: Initializer
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, T, D] -> (y [B, T, D], float32 router logits [B, T, E])."""
        c = self.config
        batch, length, width = x_BxTxD.shape
        router = parameter(self, "router", self.initializer, ("embed", None), (width, c.count))
        logits = x_BxTxD.astype(jnp.float32) @ router
        weight_BxTxK, choice_BxTxK = jax.lax.top_k(jax.nn.softmax(logits, -1), c.top_k)
        if c.normalize:
            weight_BxTxK = weight_BxTxK / jnp.sum(weight_BxTxK, -1, keepdims=True)

        def kernels(name: str, init: Initializer, shape: tuple[int, int], names: tuple[str, str]) -> jax.Array:
            def each(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
                return jax.vmap(lambda k: init(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

            return parameter(self, name, each, ("experts", *names), (c.count, *shape)).astype(self.dtype)

        matrices = [kernels("in", self.initializer, (width, self.hidden), ("embed", "mlp"))]
        if self.gated:
            matrices.append(kernels("gate", self.initializer, (width, self.hidden), ("embed", "mlp")))
        out = kernels("out", self.initializer_out, (self.hidden, width), ("mlp", "embed"))

        def apply(product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
            h = product(x, matrices[0])
            h = self.act(product(x, matrices[1])) * h if self.gated else self.act(h)
            return product(h, out)

        x_BxTxD = x_BxTxD.astype(self.dtype)
        if c.capacity is None and c.slots is None:
            flat = choice_BxTxK.reshape(-1)
            order = jnp.argsort(flat, stable=True)
            sizes = jnp.bincount(flat, length=c.count).astype(jnp.int32)
            rows = x_BxTxD.reshape(-1, width)[order // c.top_k]
            made = apply(lambda a, b: jax.lax.ragged_dot(a, b, sizes), rows)
            y_BxTxKxD = jnp.zeros_like(made).at[order].set(made).reshape(batch, length, c.top_k, width)
            return jnp.einsum("btkd,btk->btd", y_BxTxKxD, weight_BxTxK.astype(self.dtype)), logits
        slots = c.slots or math.ceil((c.capacity or 1) * c.top_k * length / c.count)
        slots = min(slots, length)
        place_BxTxExC = dispatch(choice_BxTxK, weight_BxTxK, c.count, slots)
        taken = (place_BxTxExC > 0).astype(self.dtype)
        rows = nn.with_logical_constraint(
            jnp.einsum("btec,btd->becd", taken, x_BxTxD), ("batch", "experts", None, "embed")
        )
        made = apply(lambda a, b: jnp.einsum("becd,edf->becf", a, b), rows)
        return jnp.einsum("btec,becd->btd", place_BxTxExC.astype(self.dtype), made), logits


def dispatch(choice_BxTxK: jax.Array, weight_BxTxK: jax.Array, experts: int, slots: int) -> jax.Array:
    """The weight of each token in each slot of each expert [B, T, E, C]; 0 where it has none."""
    batch, length, choices = choice_BxTxK.shape
    filled = jnp.zeros((batch, 1, experts), jnp.int32)
    out = jnp.zeros((batch, length, experts, slots))
    for k in range(choices):
        mine = jax.nn.one_hot(choice_BxTxK[..., k], experts, dtype=jnp.int32)  # [B, T, E]
        slot = jnp.cumsum(mine, axis=1) - 1 + filled
        place = jax.nn.one_hot(jnp.where(mine > 0, slot, -1), slots)  # -1 and slots beyond the last give zeros
        out = out + place * weight_BxTxK[..., k, None, None]
        filled = filled + jnp.sum(mine, axis=1, keepdims=True)
    return out
