"""The one transformer block: attention, to a memory too if asked for, and a feed-forward part."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers.config import ACTIVATIONS, GATED, BlockConfig
from ssljax.layers.dense import Dense, constrain, normalized, parameter
from ssljax.layers.experts import Experts
from ssljax.layers.multihead import Attention, Cache, Layer, Shared
from ssljax.layers.noise import drop_path, dropout


class Out(NamedTuple):
    """What a layer gives besides its tokens."""

    state: jax.Array | None  # [B, T, D], if asked for
    cache: Cache | None  # of these tokens, where there is one for them
    router: jax.Array | None = None  # float32 logits [B, T, E] where there are experts


class FeedForward(nn.Module):
    """Two matrices with an activation between, or three with a gate (Shazeer 2020)."""

    config: BlockConfig
    depth: int

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        c = self.config
        dense = functools.partial(Dense, bias=c.has_bias("mlp"), dtype=c.dtype)
        act = ACTIVATIONS[c.activation]
        h = dense(c.hidden, ("embed", "mlp"), initializer=c.initializer(), name="in")(x_BxTxD)
        if c.activation in GATED:
            h = act(dense(c.hidden, ("embed", "mlp"), initializer=c.initializer(), name="gate")(x_BxTxD)) * h
        else:
            h = act(h)
        return dense(c.known("width"), ("mlp", "embed"), initializer=c.initializer(self.depth), name="out")(h)


class Block(nn.Module):
    """x + attention, (+ cross-attention,) + feed-forward, with norms as `norm_position` says."""

    config: BlockConfig
    depth: int  # of the whole stack, for the initialiser
    cross: bool = False
    states: bool = False
    sparse: bool = True  # with experts, if the config has some
    place: int = 0  # number of blocks before it in the scanned unit

    def height_of(self, part: str) -> int:
        """Heights of its parameters, relative to the first block of the scanned unit (`layers.roles`)."""
        return -self.place

    @nn.compact
    def __call__(self, x: jax.Array, layer: Layer, shared: Shared) -> tuple[jax.Array, Out]:
        c = self.config
        kept: list[Any] = []  # keys and values
        router = None
        here = shared.noise.at(layer.index) if shared.noise is not None else None
        parts: dict[str, Any] = {"attention": Attention(c, self.depth, name="attention")}
        if self.cross:
            parts["cross"] = Attention(c, self.depth, cross=True, name="cross")
        if c.experts is not None and self.sparse:
            init, init_out, act = c.initializer(), c.initializer(self.depth), ACTIVATIONS[c.activation]
            parts["mlp"] = Experts(c.experts, c.hidden, act, c.activation in GATED, init, init_out, c.dtype, name="mlp")
        else:
            parts["mlp"] = FeedForward(c, self.depth, name="mlp")
        parallel = c.norm_position in ("parallel", "parallel_one")
        entry = x  # what parallel parts read
        normed = None
        for name, part in parts.items():
            h = x
            if c.norm_position != "post":
                if normed is None or c.norm_position != "parallel_one":
                    normed = c.new_norm(f"{name}_norm")(entry if parallel else x)
                    if name == "attention" and not c.first_norm:
                        normed = jnp.where(layer.index == 0, x, normed)
                h = normed
            if isinstance(part, Attention):
                y, new = part(h, layer, shared)
                kept += new
            elif isinstance(part, Experts):
                y, router = part(h)
            else:
                y = part(h)
            if c.layer_scale is not None:
                init = nn.initializers.constant(c.layer_scale)
                y = y * parameter(self, f"{name}_scale", init, ("embed",), y.shape[-1:], role="scale").astype(y.dtype)
            if c.norm_position == "sandwich":
                y = c.new_norm(f"{name}_norm_after")(y)
            if here is not None:
                y = dropout(y, c.dropout, here.at(f"{name}/dropout"))
                if c.drop_path:
                    y = drop_path(y, layer.drop, here.at(f"{name}/drop_path"))
            x = x + y
            if c.norm_position == "post":
                x = c.new_norm(f"{name}_norm")(x)
        if shared.beside is not None:
            value, scale, bias = shared.beside
            x = jnp.where(layer.index == 0, normalized(x + value, scale, bias, c.norm, c.norm_eps), x)
        x = constrain(x)
        return x, Out(x if self.states else None, None if layer.cache is None else Cache(*kept), router)
