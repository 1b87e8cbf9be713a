"""The transformer block: attention, to a memory as well if asked for, and a feed-forward part."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers.arrangements import ARRANGEMENTS, Branch
from ssljax.layers.config import ACTIVATIONS, GATED, BlockConfig
from ssljax.layers.dense import Dense, constrain, parameter
from ssljax.layers.experts import Experts
from ssljax.layers.multihead import Attention, Cache, Layer, Shared
from ssljax.layers.noise import Noise, drop_path, dropout


class Out(NamedTuple):
    """The outputs of a layer in addition to its tokens."""

    state: jax.Array | None  # [B, T, D], the tokens again, if asked for
    cache: Cache | None  # keys and values of these tokens, if there is a cache
    router: jax.Array | None = None  # float32 logits [B, T, E], if there are experts


class FeedForward(nn.Module):
    """Two matrices with an activation between, or three with a gate (Shazeer 2020)."""

    config: BlockConfig
    depth: int

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        c = self.config
        dense = functools.partial(Dense, bias=c.has_bias("mlp"), dtype=c.dtype)
        act = ACTIVATIONS[c.activation]
        h_BxTxF = dense(c.hidden, ("embed", "mlp"), initializer=c.initializer(), name="in")(x_BxTxD)
        if c.activation in GATED:
            gate = dense(c.hidden, ("embed", "mlp"), initializer=c.initializer(), name="gate")
            h_BxTxF = act(gate(x_BxTxD)) * h_BxTxF
        else:
            h_BxTxF = act(h_BxTxF)
        return dense(c.known("width"), ("mlp", "embed"), initializer=c.initializer(self.depth), name="out")(h_BxTxF)


class Block(nn.Module):
    """Attention, cross-attention if asked for, and a feed-forward part, arranged as `norm_position` says."""

    config: BlockConfig
    depth: int  # of the whole stack, for the initialiser
    cross: bool = False  # attends to a memory as well
    states: bool = False  # also returns its tokens in `Out`
    sparse: bool = True  # has experts, if the configuration has experts
    place: int = 0  # number of blocks before it in the scanned unit

    def height_of(self, part: str) -> int:
        """Heights of its parameters, relative to the first block of the scanned unit (`layers.roles`)."""
        return -self.place

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, layer: Layer, shared: Shared) -> tuple[jax.Array, Out]:
        made: dict[str, Any] = {}  # second outputs: keys and values of attention, logits of the router
        branches = [
            Branch(
                name,
                functools.partial(self._compute, name, part, made),
                functools.partial(self._drop, name, layer, shared.noise),
            )
            for name, part in self._parts(layer, shared).items()
        ]
        arrange = ARRANGEMENTS[self.config.norm_position]
        x_BxTxD = arrange(x_BxTxD, branches, functools.partial(self._norm, layer))
        if shared.convolution is not None:
            summed = shared.convolution.added_to(x_BxTxD, self.config.norm, self.config.norm_eps)
            x_BxTxD = jnp.where(layer.index == 0, summed, x_BxTxD)
        x_BxTxD = constrain(x_BxTxD)
        cache = None if layer.cache is None else Cache(*made["attention"], *made.get("cross", ()))
        return x_BxTxD, Out(x_BxTxD if self.states else None, cache, made["mlp"])

    def _parts(self, layer: Layer, shared: Shared) -> dict[str, Callable[[jax.Array], tuple[jax.Array, Any]]]:
        """The branches in their order: x [B, T, D] -> [B, T, D] and a second output."""
        c = self.config
        attention = Attention(c, self.depth, name="attention")
        parts: dict[str, Any] = {"attention": lambda h: attention(h, layer, shared)}
        if self.cross:
            cross = Attention(c, self.depth, cross=True, name="cross")
            parts["cross"] = lambda h: cross(h, layer, shared)
        if c.experts is not None and self.sparse:
            init, init_out, act = c.initializer(), c.initializer(self.depth), ACTIVATIONS[c.activation]
            hidden, gated = c.experts.mlp_dim or c.hidden, c.activation in GATED
            parts["mlp"] = Experts(c.experts, hidden, act, gated, init, init_out, c.dtype, name="mlp")
        else:
            mlp = FeedForward(c, self.depth, name="mlp")
            parts["mlp"] = lambda h: (mlp(h), None)
        return parts

    def _compute(self, name: str, part: Callable[..., Any], made: dict[str, Any], h_BxTxD: jax.Array) -> jax.Array:
        """The result of a part, scaled; its second output goes to `made`."""
        y_BxTxD, made[name] = part(h_BxTxD)
        if self.config.layer_scale is None:
            return y_BxTxD
        init = nn.initializers.constant(self.config.layer_scale)
        scale_D = parameter(self, f"{name}_scale", init, ("embed",), y_BxTxD.shape[-1:], role="scale")
        return y_BxTxD * scale_D.astype(y_BxTxD.dtype)

    def _drop(self, name: str, layer: Layer, noise: Noise | None, y_BxTxD: jax.Array) -> jax.Array:
        """Dropout and stochastic depth of a branch."""
        if noise is None:
            return y_BxTxD
        here = noise.at(layer.index)
        y_BxTxD = dropout(y_BxTxD, self.config.dropout, here.at(f"{name}/dropout"))
        return drop_path(y_BxTxD, layer.drop, here.at(f"{name}/drop_path")) if self.config.drop_path else y_BxTxD

    def _norm(self, layer: Layer, name: str, x_BxTxD: jax.Array) -> jax.Array:
        """The norm `name` of x; the attention of the first layer may read x itself."""
        c = self.config
        normed_BxTxD = c.new_norm(name)(x_BxTxD)
        if name != "attention_norm" or c.first_norm or c.norm_position == "post":
            return normed_BxTxD
        return jnp.where(layer.index == 0, x_BxTxD, normed_BxTxD)
