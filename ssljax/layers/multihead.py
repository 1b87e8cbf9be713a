"""Multi-head attention with its projections, position terms and cache, as a block calls it."""

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
from ssljax.layers.masks import Full, Mask, key_count
from ssljax.layers.noise import Noise
from ssljax.layers.sequence_conv import Addend
from ssljax.layers.terms.base import Heads, logit_scale
from ssljax.layers.terms.registry import terms_of

Projection = Callable[[jax.Array], jax.Array]
KeysValues = tuple[jax.Array | None, jax.Array | None]  # [B, S, G, K] each


class Cache(NamedTuple):
    """Keys and values of attention; slot s of a row holds its token at position s. With a leading axis of layers for
    a stack."""

    k: jax.Array  # [B, S, G, K], S the maximum number of tokens
    v: jax.Array
    cross_k: jax.Array | None = None  # of the memory, [B, M, G, K]
    cross_v: jax.Array | None = None

    def with_tokens(self, new: "Cache", start: jax.Array | None) -> "Cache":
        """A cache with the keys and values of T tokens from position `start` (int [B]; None: 0) on."""
        cross = (self.cross_k, self.cross_v) if new.cross_k is None else (new.cross_k, new.cross_v)
        return Cache(_write(self.k, new.k, start), _write(self.v, new.v, start), *cross)


class Cached(NamedTuple):
    """A cache of earlier tokens, and the slots at which new tokens begin."""

    cache: Cache | None = None  # leaves [layers, ...]
    start: jax.Array | None = None  # int32 [B]; None: the cache is empty, new tokens begin at slot 0


def empty_cache(config: BlockConfig, depth: int, rows: int, slots: int) -> Cache:
    """An empty cache for a stack: `rows` sequences of up to `slots` tokens."""
    shape = depth * config.repeats, rows, slots, config.groups, config.head_width
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


class Memory(NamedTuple):
    """The tokens that cross-attention reads."""

    tokens: jax.Array | None  # [B, M, D]; None: their keys and values are in the cache
    mask: Mask | None = None  # None: every query sees all of them


class Layer(NamedTuple):
    """The constants and the cache of one layer."""

    index: Any  # int32
    kind: Any  # int32, an index into KINDS
    drop: Any  # float32, rate of stochastic depth
    cache: Cache | None = None
    rotates: Any = None  # bool, False = without rotary positions; None: every layer has them


class Shared(NamedTuple):
    """The inputs that all layers of a stack share."""

    masks: tuple[Mask, ...] = (Full(),)  # one per kind of layer
    rotary: tuple[Any, ...] = (None,)  # cosines and sines, one pair per kind of layer; None: not rotary
    terms: tuple[Any, ...] = ()  # states of the position terms
    convolution: Addend | None = None  # added to the output of the first block
    memory: Memory | None = None  # of cross-attention
    start: jax.Array | None = None  # int32 [B], slots of the first queries in the cache
    noise: Noise | None = None


class Attention(nn.Module):
    """Multi-head attention with its projections: of the tokens to themselves, or to a memory."""

    config: BlockConfig
    depth: int
    cross: bool = False

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, layer: Layer, shared: Shared) -> tuple[jax.Array, KeysValues]:
        """Returns [B, T, D], and keys and values for the cache; (None, None) if the cache has them already."""
        c = self.config
        to_q = self.projection("q", c.known("heads"), "heads")
        q_BxTxHxK = self._normed("q", to_q(x_BxTxD))
        if self.cross:
            assert shared.memory is not None
            y_BxTxHxK, new = self._to_memory(q_BxTxHxK, shared.memory, layer.cache)
        else:
            y_BxTxHxK, new = self._to_tokens(q_BxTxHxK, to_q, x_BxTxD, layer, shared)
        out = Dense(
            c.known("width"), ("heads", "embed"), c.has_bias("out"), c.initializer(self.depth), c.dtype, name="out"
        )
        return out(y_BxTxHxK.reshape(*x_BxTxD.shape[:2], -1)), new

    def projection(self, name: str, count: int, axis: str, component: str | None = None) -> Projection:
        """The map x [..., D] -> [..., count, head width] with the parameters `name`, biased as `component` is."""
        c = self.config
        shape, bias = (count, c.head_width), c.has_bias(component or name)
        dense = Dense(math.prod(shape), ("embed", axis), bias, c.initializer(), c.dtype, name=name)
        return lambda x: dense(x).reshape(*x.shape[:-1], *shape)

    def _to_memory(self, q_BxTxHxK: jax.Array, memory: Memory, cache: Cache | None) -> tuple[jax.Array, KeysValues]:
        """Attention to a memory, whose keys and values an earlier call may have left in the cache."""
        k: Any
        v: Any
        new: KeysValues = (None, None)
        if memory.tokens is None:
            assert cache is not None
            k, v = cache.cross_k, cache.cross_v
        else:
            to_k, to_v = (self.projection(name, self.config.groups, "kv") for name in ("k", "v"))
            k, v = new = self._normed("k", to_k(memory.tokens)), to_v(memory.tokens)
        return self._attend(0)(q_BxTxHxK, k, v, memory.mask or Full()), new

    def _to_tokens(
        self, q_BxTxHxK: jax.Array, to_q: Projection, x_BxTxD: jax.Array, layer: Layer, shared: Shared
    ) -> tuple[jax.Array, KeysValues]:
        """Attention to the tokens themselves, and to earlier ones in the cache."""
        c, length = self.config, x_BxTxD.shape[1]
        keys = length if shared.start is not None else key_count(shared.masks[0], length)
        to_k, to_v = (self.projection(name, c.groups, "kv") for name in ("k", "v"))
        k_BxSxGxK, v_BxSxGxK = self._normed("k", to_k(x_BxTxD[:, :keys])), to_v(x_BxTxD[:, :keys])
        if shared.rotary[0] is not None:
            tables = _of_layer(shared.rotary, layer)
            q_BxTxHxK, k_BxSxGxK = positions.rotate(q_BxTxHxK, tables), positions.rotate(k_BxSxGxK, tables)
        new = k_BxSxGxK, v_BxSxGxK
        if layer.cache is not None and shared.start is not None:
            k_BxSxGxK = _write(layer.cache.k, k_BxSxGxK, shared.start)
            v_BxSxGxK = _write(layer.cache.v, v_BxSxGxK, shared.start)
        terms = terms_of(c)
        products = sum(term.products for term in terms)
        attention = self._attend(products)
        heads = Heads(q_BxTxHxK, k_BxSxGxK, self._scale(products), to_q, to_k)
        made = [term.logits(self, heads, state) for term, state in zip(terms, shared.terms, strict=True)]
        biases = [bias for bias in made if bias is not None]
        bias = functools.reduce(jnp.add, biases) if biases else None
        # Each kind of layer is a branch, so that its mask and its kernel are known when it is compiled.
        kinds = [functools.partial(attention, mask=mask, bias=bias) for mask in shared.masks]
        if len(kinds) == 1:
            return kinds[0](q_BxTxHxK, k_BxSxGxK, v_BxSxGxK), new
        return jax.lax.switch(layer.kind, kinds, q_BxTxHxK, k_BxSxGxK, v_BxSxGxK), new

    def _normed(self, name: str, x_BxTxHxK: jax.Array) -> jax.Array:
        """Queries or keys after their norm, if the configuration has one."""
        c = self.config
        if not c.qk_norm:
            return x_BxTxHxK
        norm = Norm("rms_plus_one" if c.norm == "rms_plus_one" else "rms", c.norm_eps, axis=None, name=f"{name}_norm")
        if c.qk_norm_over == "head":
            return norm(x_BxTxHxK)
        return norm(x_BxTxHxK.reshape(*x_BxTxHxK.shape[:2], -1)).reshape(x_BxTxHxK.shape)

    def _scale(self, products: int) -> float:
        return self.config.attention_scale or logit_scale(self.config.head_width, products)

    def _attend(self, products: int) -> Callable[..., jax.Array]:
        """`attend` with the settings of the configuration, for logits of 1 + `products` products."""
        c, scale = self.config, self._scale(products)
        return functools.partial(
            attend, scale=scale, cap=c.attention_cap, mix=self._mix(), kernel=c.kernel, strict=c.strict
        )

    def _mix(self) -> Mix | None:
        """The learned sums over heads; at first each head keeps its own logits and weights."""
        if not self.config.talking_heads:
            return None
        heads = self.config.known("heads")
        same: Any = lambda key, shape: jnp.eye(*shape)  # noqa: E731
        names = ("mix_logits", "mix_weights")
        return Mix(*(parameter(self, name, same, (None, None), (heads, heads), role="matrix") for name in names))


def _write(slots: jax.Array, new: jax.Array, start: jax.Array | None) -> jax.Array:
    """Writes `new` [..., B, T, G, K] into slots [..., B, S, G, K], from slot `start` int [B] (None: 0) on."""
    new = new.astype(slots.dtype)
    if start is None:
        return jax.lax.dynamic_update_slice(slots, new, (0,) * slots.ndim)
    rows, length = new.shape[-4:-2]
    columns = start[:, None] + jnp.arange(length)
    return slots.at[..., jnp.arange(rows)[:, None], columns, :, :].set(new)


def _of_layer(tables: tuple[Any, ...], layer: Layer) -> Any:
    """The cosines and sines of a layer, from those of each kind of layer."""
    own = tables[0] if len(tables) == 1 else jax.tree.map(lambda *xs: jnp.stack(xs)[layer.kind], *tables)
    if layer.rotates is None:
        return own
    cos, sin = own
    return jnp.where(layer.rotates, cos, 1.0), jnp.where(layer.rotates, sin, 0.0)
