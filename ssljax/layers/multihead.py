"""Multi-head attention with its projections, positions and cache, as a block calls it."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers import positions
from ssljax.layers.attention import Mix, attend
from ssljax.layers.config import BlockConfig
from ssljax.layers.dense import Dense, Norm, parameter
from ssljax.layers.disentangled import Distances, logit_scale, position_logits
from ssljax.layers.masks import Full, Mask
from ssljax.layers.noise import Noise
from ssljax.layers.relative import Relative, RelativeLogits
from ssljax.layers.sequence_conv import Addend


class Cache(NamedTuple):
    """Keys and values that attention remembers, slot s of a row those of its token at position s. With a leading axis
    of layers: of a stack."""

    k: jax.Array  # [B, S, G, K], S the most tokens that there may be
    v: jax.Array
    cross_k: jax.Array | None = None  # of the memory, [B, M, G, K]
    cross_v: jax.Array | None = None

    def with_tokens(self, new: "Cache", start: jax.Array | None) -> "Cache":
        """With the keys and values of T tokens from position `start` (int [B]; None: 0) on."""
        cross = (self.cross_k, self.cross_v) if new.cross_k is None else (new.cross_k, new.cross_v)
        return Cache(_write(self.k, new.k, start), _write(self.v, new.v, start), *cross)


def empty_cache(config: BlockConfig, depth: int, rows: int, slots: int) -> Cache:
    """That of a stack for `rows` sequences of at most `slots` tokens."""
    shape = depth * config.repeats, rows, slots, config.groups, config.head_width
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


class Layer(NamedTuple):
    """What is a layer's own, besides its parameters."""

    index: Any  # int32
    kind: Any  # int32, of KINDS
    drop: Any  # float32, rate of stochastic depth
    cache: Cache | None = None


class Shared(NamedTuple):
    """What all layers of a stack read."""

    masks: tuple[Mask, ...]  # of each of KINDS; one if all layers are global
    rotary: tuple[Any, ...]  # cosines and sines for each; None where positions are not rotary
    bias: jax.Array | None = None  # [B or 1, H, T, S], added to the logits of self-attention
    pairs: positions.Pairs | None = None  # for biases that are each layer's own
    distances: Distances | None = None  # what disentangled attention reads of positions
    beside: Addend | None = None  # what a convolution adds to the output of the first block
    relative: Relative | None = None  # distances and segments, for logits of a query with them
    memory: jax.Array | None = None  # [B, M, D], for cross-attention
    memory_mask: Mask | None = None
    start: jax.Array | None = None  # int32 [B], where the queries stand in the cache
    noise: Noise | None = None


class Attention(nn.Module):
    """Multi-head attention with its projections: of the tokens to themselves, or to a memory."""

    config: BlockConfig
    depth: int
    cross: bool = False

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, layer: Layer, shared: Shared) -> tuple[jax.Array, tuple[Any, Any]]:
        """Also gives keys and values, for the cache; (None, None) where it has them already."""
        c = self.config
        heads, width = c.known("heads"), c.head_width
        to_q = self._projection("q", heads, "heads")
        to_k, to_v = (self._projection(name, c.groups, "kv") for name in ("k", "v"))
        cache = layer.cache
        q = to_q(x_BxTxD)
        k: Any
        v: Any
        new: tuple[Any, Any]
        known = self.cross and shared.memory is None  # an earlier call has left them in the cache
        if known:
            assert cache is not None
            k, v = cache.cross_k, cache.cross_v
        else:
            attended = x_BxTxD if shared.relative is None else x_BxTxD[:, : shared.relative.row.shape[-1]]
            source: Any = shared.memory if self.cross else attended
            k, v = to_k(source), to_v(source)
        if c.qk_norm:
            q = Norm("rms", c.norm_eps, axis=None, name="q_norm")(q)
            k = k if known else Norm("rms", c.norm_eps, axis=None, name="k_norm")(k)
        terms = c.disentangled.terms if c.disentangled is not None and not self.cross else ()
        scale = c.attention_scale or logit_scale(width, len(terms))
        attention = functools.partial(
            attend, scale=scale, cap=c.attention_cap, mix=self._mix(), kernel=c.kernel, strict=c.strict
        )
        if self.cross:
            y = attention(q, k, v, shared.memory_mask or Full())
            new = (None, None) if known else (k, v)
        else:
            if shared.rotary[0] is not None:
                tables = _of_kind(shared.rotary, layer.kind)
                q, k = positions.rotate(q, tables), positions.rotate(k, tables)
            new = k, v
            if cache is not None and shared.start is not None:
                k, v = _write(cache.k, k, shared.start), _write(cache.v, v, shared.start)
            bias = shared.bias if shared.pairs is None else grid_bias(self, c, shared.pairs)
            if terms:
                near = scale * self._position_logits(q, k, to_q, to_k, shared)
                bias = near if bias is None else bias + near
            if shared.relative is not None:
                q, bias = RelativeLogits(c.initializer(), c.dtype, name="relative")(q, shared.relative, scale)
            ways = [functools.partial(attention, mask=mask, bias=bias) for mask in shared.masks]
            if len(ways) == 1 or isinstance(layer.kind, int):
                y = ways[layer.kind if len(ways) > 1 else 0](q, k, v)
            else:  # each kind is a branch of its own, so that its mask and its kernel are known when it is compiled
                y = jax.lax.switch(layer.kind, ways, q, k, v)
        y = y.reshape(*x_BxTxD.shape[:2], -1)
        init = c.initializer(self.depth)
        return Dense(c.known("width"), ("heads", "embed"), c.has_bias("out"), init, c.dtype, name="out")(y), new

    def _projection(self, name: str, count: int, axis: str, part: str | None = None) -> Callable[..., jax.Array]:
        """x [..., D] -> [..., count, head width], by the parameters `name`; biased as `part` is."""
        c = self.config
        shape = (count, c.head_width)
        dense = Dense(math.prod(shape), ("embed", axis), c.has_bias(part or name), c.initializer(), c.dtype, name=name)
        return lambda x: dense(x).reshape(*x.shape[:-1], *shape)

    def _position_logits(self, q: jax.Array, k: jax.Array, to_q: Callable, to_k: Callable, shared: Shared) -> jax.Array:
        """Logits [B, H, T, S] of contents and distances, before they are scaled."""
        c, distances = self.config, shared.distances
        assert c.disentangled is not None and distances is not None
        if not c.disentangled.shared:
            to_k = self._projection("distance_k", c.groups, "kv", "k")
            to_q = self._projection("distance_q", c.known("heads"), "heads", "q")
        distance_k = to_k(distances.table) if "c2p" in c.disentangled.terms else None
        distance_q = to_q(distances.table) if "p2c" in c.disentangled.terms else None
        return position_logits(q, k, distance_k, distance_q, distances.rows)

    def _mix(self) -> Mix | None:
        """Between heads; at first each keeps to itself."""
        if not self.config.talking_heads:
            return None
        heads = self.config.known("heads")
        same: Any = lambda key, shape: jnp.eye(*shape)  # noqa: E731
        names = ("mix_logits", "mix_weights")
        return Mix(*(parameter(self, name, same, (None, None), (heads, heads), role="matrix") for name in names))


def _write(slots: jax.Array, new: jax.Array, start: jax.Array | None) -> jax.Array:
    """slots [..., B, S, G, K] with `new` [..., B, T, G, K] from slot `start` int [B] (None: 0) on."""
    new = new.astype(slots.dtype)
    if start is None:
        return jax.lax.dynamic_update_slice(slots, new, (0,) * slots.ndim)
    rows, length = new.shape[-4:-2]
    places = start[:, None] + jnp.arange(length)
    return slots.at[..., jnp.arange(rows)[:, None], places, :, :].set(new)


def grid_bias(module: nn.Module, c: BlockConfig, pairs: positions.Pairs) -> jax.Array:
    """[1, H, T, T]: what a learned table says of each pair."""
    shape, names = (c.bias_rows, c.known("heads")), (None, "heads")
    table = parameter(module, "relative_bias", nn.initializers.zeros, names, shape, role="position")
    if pairs.stretch is not None:
        table = jnp.asarray(pairs.stretch) @ table
    return table[jnp.asarray(pairs.rows)].transpose(2, 0, 1)[None]


def _of_kind(tables: tuple[Any, ...], kind: Any) -> Any:
    if len(tables) == 1 or isinstance(kind, int):
        return tables[kind if len(tables) > 1 else 0]
    return jax.tree.map(lambda *xs: jnp.stack(xs)[kind], *tables)
