"""The transformer block: self-attention, optional cross-attention, and a feed-forward part."""

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
    """The outputs of a layer in addition to its tokens; None: not requested, or the layer has none."""

    state: jax.Array | None  # [B, T, D], a copy of the output tokens for the stack to collect
    cache: Cache | None  # keys and values of these tokens
    router: jax.Array | None = None  # float32 logits [B, T, E] of the router of experts


class FeedForward(nn.Module):
    """Two linear maps with an activation between them; a gated activation adds a third map (Shazeer 2020, "GLU")."""

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
    """Self-attention, optional cross-attention, and a feed-forward part; `norm_position` places the norms."""

    config: BlockConfig
    depth: int  # number of blocks of the whole stack, for the initialiser
    cross: bool = False  # True: also attends to a memory, if there is one
    states: bool = False  # True: `Out.state` holds the output tokens
    sparse: bool = True  # False: no experts in this block, even if the configuration has them
    place: int = 0  # number of blocks before this one in the scanned unit

    def height_of(self, part: str) -> int:
        """The height of the block's parameters (`layers.roles`), relative to the first block of the scanned unit."""
        return -self.place

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, layer: Layer, shared: Shared) -> tuple[jax.Array, Out]:
        second: dict[str, Any] = {}  # second outputs by branch: keys and values of attention, logits of the router
        branches = [
            Branch(
                name,
                functools.partial(self._compute, name, part, second),
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
        cache = None if layer.cache is None else Cache(*second["attention"], *second.get("cross", ()))
        return x_BxTxD, Out(x_BxTxD if self.states else None, cache, second["mlp"])

    def _parts(self, layer: Layer, shared: Shared) -> dict[str, Callable[[jax.Array], tuple[jax.Array, Any]]]:
        """The functions of the branches, in order: x [B, T, D] -> (y [B, T, D], second output)."""
        c = self.config
        attention = Attention(c, self.depth, name="attention")
        parts: dict[str, Any] = {"attention": lambda h: attention(h, layer, shared)}
        if self.cross and shared.memory is not None:
            cross = Attention(c, self.depth, cross=True, name="cross")
            parts["cross"] = lambda h: cross(h, layer, shared)
        if c.experts is not None and self.sparse:
            init, init_out, act = c.initializer(), c.initializer(self.depth), ACTIVATIONS[c.activation]
            hidden, gated = c.experts.mlp_dim or c.hidden, c.activation in GATED
            experts = Experts(c.experts, hidden, act, gated, init, init_out, c.dtype, name="mlp")
            parts["mlp"] = lambda h: experts(h, shared.valid)
        else:
            mlp = FeedForward(c, self.depth, name="mlp")
            parts["mlp"] = lambda h: (mlp(h), None)
        return parts

    def _compute(self, name: str, part: Callable[..., Any], second: dict[str, Any], h_BxTxD: jax.Array) -> jax.Array:
        """The output of a branch times its LayerScale, if any; the second output is stored in `second[name]`."""
        y_BxTxD, second[name] = part(h_BxTxD)
        if self.config.layer_scale is None:
            return y_BxTxD
        init = nn.initializers.constant(self.config.layer_scale)
        scale_D = parameter(self, f"{name}_scale", init, ("embed",), y_BxTxD.shape[-1:], role="scale")
        return y_BxTxD * scale_D.astype(y_BxTxD.dtype)

    def _drop(self, name: str, layer: Layer, noise: Noise | None, y_BxTxD: jax.Array) -> jax.Array:
        """Applies dropout and stochastic depth to the output of a branch."""
        if noise is None:
            return y_BxTxD
        noise = noise.at(layer.index)
        y_BxTxD = dropout(y_BxTxD, self.config.dropout, noise.at(f"{name}/dropout"))
        return drop_path(y_BxTxD, layer.drop, noise.at(f"{name}/drop_path")) if self.config.drop_path else y_BxTxD

    def _norm(self, layer: Layer, name: str, x_BxTxD: jax.Array) -> jax.Array:
        """Applies the norm `name`; without `first_norm`, the attention of the first layer reads x unnormalised."""
        c = self.config
        normed_BxTxD = c.new_norm(name)(x_BxTxD)
        if name != "attention_norm" or c.first_norm or c.norm_position == "post":
            return normed_BxTxD
        return jnp.where(layer.index == 0, x_BxTxD, normed_BxTxD)
