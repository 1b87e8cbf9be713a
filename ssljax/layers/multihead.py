"""Multi-head attention as a module: projections, rotary positions, position terms and cache."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.layers import positions
from ssljax.layers.attention import HeadMixing, attend
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
    """Keys and values of earlier tokens; slot s holds position s. A stack adds a leading axis of layers."""

    k: jax.Array  # [B, S, G, K], S the maximum number of tokens
    v: jax.Array  # [B, S, G, K]
    cross_k: jax.Array | None = None  # [B, M, G, K], keys of the memory of cross-attention
    cross_v: jax.Array | None = None  # [B, M, G, K]

    @property
    def axes(self) -> tuple[str | None, ...]:
        """The logical axes of each array in the cache of a stack."""
        return "layers", "batch", "length", "kv", None

    def with_tokens(self, new: "Cache", start: jax.Array | None) -> "Cache":
        """Returns a cache with the keys and values of `new` written from slot `start` (int [B]; None: 0) on."""
        cross = (self.cross_k, self.cross_v) if new.cross_k is None else (new.cross_k, new.cross_v)
        return Cache(_write(self.k, new.k, start), _write(self.v, new.v, start), *cross)


class Cached(NamedTuple):
    """A cache, and the slot of the first new token in each row."""

    cache: Cache | None = None  # leaves [layers, ...]
    start: jax.Array | None = None  # int32 [B]; None: the cache is empty, new tokens begin at slot 0


def empty_cache(config: BlockConfig, depth: int, rows: int, slots: int) -> Cache:
    """An empty cache for a stack: `rows` sequences of up to `slots` tokens."""
    shape = depth * config.repeats, rows, slots, config.groups, config.head_width
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


class Memory(NamedTuple):
    """The tokens that cross-attention reads."""

    tokens: jax.Array | None  # [B, M, D]; None: the cache already has their keys and values
    mask: Mask | None = None  # None: every query attends to all of them


class Layer(NamedTuple):
    """The inputs of one layer that differ between layers. A stack scans over them, with a leading axis of layers."""

    index: Any  # int32, number of the layer
    kind: Any  # int32, index into `layers.config.KINDS`
    drop: Any  # float32, rate of stochastic depth
    cache: Cache | None = None
    rotates: Any = None  # bool, False = without rotary positions; None: every layer has them


class Shared(NamedTuple):
    """The inputs that all layers of a stack share."""

    masks: tuple[Mask, ...] = (Full(),)  # one per kind of layer
    rotary: tuple[Any, ...] = (None,)  # cosines and sines, one pair per kind of layer; None: not rotary
    terms: tuple[Any, ...] = ()  # results of `Term.prepare`, one per position term
    convolution: Addend | None = None  # added to the output of the first block
    memory: Memory | None = None  # read by cross-attention
    start: jax.Array | None = None  # int32 [B], slot of the first query in the cache; None: empty cache or no cache
    noise: Noise | None = None  # None: no dropout
    valid: jax.Array | None = None  # bool [B, T], False = padding, which takes no slots of experts; None: no padding


class Attention(nn.Module):
    """Multi-head self-attention or cross-attention with its projections."""

    config: BlockConfig
    depth: int  # number of blocks of the stack, for the initialiser
    cross: bool = False  # True: keys and values come from a memory

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, layer: Layer, shared: Shared) -> tuple[jax.Array, KeysValues]:
        """Returns (output [B, T, D], new keys and values); (None, None) if the cache already holds the memory's."""
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
        """Returns the linear map [..., D] -> [..., count, head width] with parameters under `name`.

        Args:
            name: name of the submodule.
            count: number of heads.
            axis: logical name of the output axis.
            component: component of the configuration that decides on the bias; None: `name`.
        """
        c = self.config
        shape, bias = (count, c.head_width), c.has_bias(component or name)
        dense = Dense(math.prod(shape), ("embed", axis), bias, c.initializer(), c.dtype, name=name)
        return lambda x: dense(x).reshape(*x.shape[:-1], *shape)

    def _to_memory(self, q_BxTxHxK: jax.Array, memory: Memory, cache: Cache | None) -> tuple[jax.Array, KeysValues]:
        """Cross-attention; keys and values come from the memory's tokens or, without tokens, from the cache."""
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
        """Self-attention to these tokens and to earlier tokens in the cache."""
        c, length = self.config, x_BxTxD.shape[1]
        keys = length if shared.start is not None else key_count(shared.masks[0], length)
        to_k, to_v = (self.projection(name, c.groups, "kv") for name in ("k", "v"))
        k_BxSxGxK, v_BxSxGxK = self._normed("k", to_k(x_BxTxD[:, :keys])), to_v(x_BxTxD[:, :keys])
        if shared.rotary[0] is not None:
            tables = _of_layer(shared.rotary, layer)
            q_BxTxHxK, k_BxSxGxK = positions.rotate(q_BxTxHxK, tables), positions.rotate(k_BxSxGxK, tables)
        if c.scaled_by_layer:
            q_BxTxHxK = q_BxTxHxK / jnp.asarray(layer.index + 1, q_BxTxHxK.dtype)
        new = k_BxSxGxK, v_BxSxGxK
        if layer.cache is not None and shared.start is not None:
            k_BxSxGxK = _write(layer.cache.k, k_BxSxGxK, shared.start)
            v_BxSxGxK = _write(layer.cache.v, v_BxSxGxK, shared.start)
        terms = terms_of(c)
        products = sum(term.products for term in terms)
        attention = self._attend(products)
        heads = Heads(q_BxTxHxK, k_BxSxGxK, self._scale(products), to_q, to_k)
        addends = [term.logits(self, heads, state) for term, state in zip(terms, shared.terms, strict=True)]
        biases = [bias for bias in addends if bias is not None]
        bias = functools.reduce(jnp.add, biases) if biases else None
        # One branch per kind of layer: the mask decides on the kernel, so it must be known at compile time.
        branches = [functools.partial(attention, mask=mask, bias=bias) for mask in shared.masks]
        if len(branches) == 1:
            return branches[0](q_BxTxHxK, k_BxSxGxK, v_BxSxGxK), new
        return jax.lax.switch(layer.kind, branches, q_BxTxHxK, k_BxSxGxK, v_BxSxGxK), new

    def _normed(self, name: str, x_BxTxHxK: jax.Array) -> jax.Array:
        """Queries or keys [B, T, H, K], normalised if `qk_norm` is set."""
        c = self.config
        if not c.qk_norm:
            return x_BxTxHxK
        norm = Norm("rms_plus_one" if c.norm == "rms_plus_one" else "rms", c.norm_eps, axis=None, name=f"{name}_norm")
        if c.qk_norm_over == "head":
            return norm(x_BxTxHxK)
        return norm(x_BxTxHxK.reshape(*x_BxTxHxK.shape[:2], -1)).reshape(x_BxTxHxK.shape)

    def _scale(self, products: int) -> float:
        """The factor of q k^T if position terms add `products` products to it."""
        c = self.config
        if c.attention_scale is not None:
            return c.attention_scale / c.head_ratio
        return logit_scale(c.head_width, products) * c.head_ratio**-0.5

    def _attend(self, products: int) -> Callable[..., jax.Array]:
        """`attend` with the settings of the configuration; see `_scale` for `products`."""
        c, scale = self.config, self._scale(products)
        return functools.partial(
            attend, scale=scale, cap=c.attention_cap, mix=self._mix(), kernel=c.kernel, strict=c.strict
        )

    def _mix(self) -> HeadMixing | None:
        """The parameters that mix heads, initially the identity; None without `talking_heads`."""
        if not self.config.talking_heads:
            return None
        heads = self.config.known("heads")
        identity: Any = lambda key, shape: jnp.eye(*shape)  # noqa: E731
        names = ("mix_logits", "mix_weights")
        return HeadMixing(
            *(parameter(self, name, identity, (None, None), (heads, heads), role="matrix") for name in names)
        )


def _write(slots: jax.Array, new: jax.Array, start: jax.Array | None) -> jax.Array:
    """Writes `new` [..., B, T, G, K] into slots [..., B, S, G, K], from slot `start` int [B] (None: 0) on."""
    new = new.astype(slots.dtype)
    if start is None:
        return jax.lax.dynamic_update_slice(slots, new, (0,) * slots.ndim)
    rows, length = new.shape[-4:-2]
    columns = start[:, None] + jnp.arange(length)
    return slots.at[..., jnp.arange(rows)[:, None], columns, :, :].set(new)


def _of_layer(tables: tuple[Any, ...], layer: Layer) -> Any:
    """The cosines and sines of a layer, from those of each kind of layer; a single entry serves all kinds."""
    own = tables[0] if len(tables) == 1 else jax.tree.map(lambda *xs: jnp.stack(xs)[layer.kind], *tables)
    if layer.rotates is None:
        return own
    cos, sin = own
    return jnp.where(layer.rotates, cos, 1.0), jnp.where(layer.rotates, sin, 0.0)
