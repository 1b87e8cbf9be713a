"""A stack of blocks, scanned or unrolled, and the inputs that blocks share: masks, rotary tables, position terms."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.layers.block import Block, Out
from ssljax.layers.config import ACTIVATIONS, KINDS, BlockConfig
from ssljax.layers.dense import constrain
from ssljax.layers.experts import sow_routing
from ssljax.layers.masks import Given, Mask, Sliding, is_causal, key_count
from ssljax.layers.multihead import Cache, Cached, Layer, Memory, Shared
from ssljax.layers.noise import Noise
from ssljax.layers.positions import Layout, rotary_tables
from ssljax.layers.roles import HEIGHTS
from ssljax.layers.sequence_conv import Addend, Convolution
from ssljax.layers.terms.base import Pairs
from ssljax.layers.terms.registry import terms_of


class Stack(nn.Module):
    """A stack of `depth` blocks, with a final norm unless `norm_position` is "post".

    The parameters of the blocks are leaves [depth, ...] under `layers`, whether scanned or unrolled. Router logits are
    sown into the collection "routers" (`layers.experts.sow_routing`).
    """

    config: BlockConfig
    depth: int
    cross: bool = False
    final_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x_BxTxD: jax.Array,
        mask: Mask,
        layout: Layout | None = None,
        noise: Noise | None = None,
        *,
        memory: Memory | None = None,
        cached: Cached | None = None,
        states: bool = False,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array, Out]:
        """Applies the blocks.

        Args:
            x_BxTxD: the input.
            mask: allowed pairs of queries and keys, which local layers restrict further. If it has fewer keys than
                queries, the keys are the first tokens. With a filled cache its keys are slots of the cache, and slots
                after the query are forbidden in any case.
            layout: positions of the tokens; None: a sequence 0..T-1.
            noise: randomness of dropout and stochastic depth; None: neither.
            memory: tokens that cross-attention reads.
            cached: keys and values of earlier tokens; None: no cache.
            states: True: also return the output of every block.
            valid: bool [B, T], False = padding, which router losses and capacities of experts leave out; None: no
                padding.

        Returns:
            (tokens [B, T, D], out). `out.state` [depth * repeats, B, T, D]: outputs of the blocks before the final
            norm; `out.cache`: the updated cache; `out.router` [layers with experts, B, T, E]: router logits. They are
            None if not requested or absent.
        """
        c = self.config
        cached = cached or Cached()
        x_BxTxD = constrain(x_BxTxD.astype(c.dtype))
        shared = self._shared(x_BxTxD, mask, layout or Layout(), cached)
        shared = shared._replace(
            convolution=self._convolution(x_BxTxD, mask, noise, cached), memory=memory, noise=noise, valid=valid
        )
        x_BxTxD, out = self._blocks(x_BxTxD, self._layers(cached.cache), shared, states)
        sow_routing(self, out.router, valid, c.experts)
        if cached.cache is not None:
            assert out.cache is not None
            out = out._replace(cache=cached.cache.with_tokens(out.cache, cached.start))
        if c.norm_position != "post" and self.final_norm:
            x_BxTxD = c.new_norm("norm")(x_BxTxD)
        return x_BxTxD, out

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): a convolution counts as the first block; the rest has height 0."""
        return self.depth if part == "convolution" else 0

    def _heights(self, units: int) -> tuple[int, ...]:
        """The height of the first block of each scanned unit."""
        return tuple(range(self.depth, 0, -(self.depth // units)))

    def _kinds(self) -> list[int]:
        """The kind of each layer, as an index into KINDS."""
        return [KINDS.index(kind) for kind in self.config.kinds(self.depth * self.config.repeats)]

    def _layers(self, cache: Cache | None) -> Layer:
        """The inputs of all layers, leaves [depth * repeats, ...]."""
        total, rotates = self.depth * self.config.repeats, self.config.rope_layers
        drop = jnp.linspace(0.0, self.config.drop_path, total)
        layers = Layer(jnp.arange(total), jnp.asarray(self._kinds()), drop, cache)
        if all(rotates):
            return layers
        return layers._replace(rotates=jnp.asarray([rotates[i % len(rotates)] for i in range(total)]))

    def _blocks(self, x_BxTxD: jax.Array, layers: Layer, shared: Shared, states: bool) -> tuple[jax.Array, Out]:
        """Scans over blocks, or over units of several blocks (`Repeated`, `Period`); unrolled if `scan` is false."""
        c = self.config
        steps = self.depth // _period(c)
        shape = steps, *(n for n in (c.repeats, _period(c)) if n > 1)
        layers = jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), layers)
        unit: Any = Repeated if c.repeats > 1 else _period_or_block(c)
        scanned = nn.scan(
            unit,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=steps,
            unroll=1 if c.scan or self.is_initializing() else steps,
            metadata_params={nn.PARTITION_NAME: "layers", HEIGHTS: self._heights(steps)},
        )
        x_BxTxD, out = scanned(c, self.depth, self.cross, states, name="layers")(x_BxTxD, layers, shared)
        return x_BxTxD, jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(shape) :]), out)

    def _shared(self, x_BxTxD: jax.Array, mask: Mask, layout: Layout, cached: Cached) -> Shared:
        """Masks and rotary tables per kind of layer, and the states of the position terms."""
        c, length, start = self.config, x_BxTxD.shape[1], cached.start
        if cached.cache is None or start is None:
            pairs = Pairs(length, key_count(mask, length), is_causal(mask), layout)
        else:
            pairs = Pairs(length, cached.cache.k.shape[2], True, layout, start)
        kinds = sorted(set(self._kinds()))
        masks = tuple(_mask(mask, pairs, c.known("window") if KINDS[kind] == "local" else None) for kind in kinds)
        # With a cache the final length is unknown; length 0 makes scalings that depend on it assume a short sequence.
        rotary = _rotary(c, layout, length, length if cached.cache is None else 0, kinds)
        states = tuple(term.prepare(self, pairs) for term in terms_of(c))
        return Shared(masks, rotary, states, start=pairs.start)

    def _convolution(self, x_BxTxD: jax.Array, mask: Mask, noise: Noise | None, cached: Cached) -> Addend | None:
        """The result of the convolution, to be added to the output of the first block; None without a convolution."""
        c, conv = self.config, self.config.convolution
        if conv is None:
            return None
        if cached.cache is not None:
            raise UserError("model.convolution: must be None for generation with a cache, which reads token by token")
        biased, act = c.norm == "layer" and c.has_bias("norm"), ACTIVATIONS[conv.activation]
        module = Convolution(conv, act, biased, c.initializer(), c.dropout, c.dtype, name="convolution")
        return module(x_BxTxD, mask, noise)


def _mask(mask: Mask, pairs: Pairs, window: int | None) -> Mask:
    """The mask of the layers of one kind; `window`: reach of local layers, None for global layers."""
    if pairs.start is None:
        return mask if window is None else mask & Sliding(window, causal=pairs.causal)
    distance_Bx1xTxS = pairs.distance()[:, None]
    visible = distance_Bx1xTxS <= 0  # slots after the query are still empty
    return Given(visible if window is None else visible & (distance_Bx1xTxS > -window)) & mask


def _rotary(c: BlockConfig, layout: Layout, queries: int, length: int, kinds: list[int]) -> tuple[Any, ...]:
    """Rotary tables: (cosines, sines), [B or 1, T, 1, R / 2] each, one pair per kind of layer; (None,) without
    rotation.

    Tables of the layout, which do not depend on the kind, are returned as a single pair.
    """
    if layout.rotary is not None:
        return (layout.rotary,)
    if c.rope_theta is None:
        return (None,)
    positions = jnp.arange(queries)[None] if layout.positions is None else layout.positions
    thetas = (c.rope_theta, c.rope_theta_local or c.rope_theta)
    scalings = (c.rope_scaling, c.rope_scaling if c.rope_scaling_local else None)
    return tuple(rotary_tables(positions, c.rotary_width, thetas[kind], scalings[kind], length) for kind in kinds)


class Repeated(nn.Module):
    """The scanned unit of ALBERT: a group of blocks applied `repeats` times in succession with the same parameters."""

    config: BlockConfig
    depth: int
    cross: bool = False
    states: bool = False

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, layers: Layer, shared: Shared) -> tuple[jax.Array, Out]:
        c = self.config
        scanned = nn.scan(
            _period_or_block(c),
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(0, nn.broadcast),
            length=c.repeats,
            unroll=1 if c.scan or self.is_initializing() else c.repeats,
        )
        return scanned(c, self.depth, self.cross, self.states, name="block")(x_BxTxD, layers, shared)


class Period(nn.Module):
    """The scanned unit of n blocks with parameters of their own: one of them has experts, or they form a group."""

    config: BlockConfig
    depth: int
    cross: bool = False
    states: bool = False

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, layers: Layer, shared: Shared) -> tuple[jax.Array, Out]:
        c = self.config
        outs = []
        for i in range(_period(c)):
            layer = jax.tree.map(lambda a, i=i: a[i], layers)
            sparse = c.experts is not None and c.experts.at(i)
            block = _remat(c)(c, self.depth, self.cross, self.states, sparse, i, name=f"block_{i}")
            x_BxTxD, out = block(x_BxTxD, layer, shared)
            outs.append(out)
        # A field that some blocks lack (the router logits) is stacked over the blocks that have it.
        return x_BxTxD, Out(*(_stacked([leaf for leaf in leaves if leaf is not None]) for leaves in zip(*outs)))


def _period(c: BlockConfig) -> int:
    """The number of blocks in a scanned unit, each with parameters of its own."""
    return c.group if c.experts is None else c.experts.every


def _period_or_block(c: BlockConfig) -> Any:
    return Period if _period(c) > 1 else _remat(c)


def _stacked(trees: list[Any]) -> Any:
    """Stacks trees of arrays along a new first axis; None for an empty list."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if trees else None


def _remat(c: BlockConfig) -> Any:
    """The class `Block`, wrapped to recompute activations in the backward pass as `remat` demands."""
    if c.remat == "none":
        return Block
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat == "dots" else None
    return nn.remat(Block, prevent_cse=not c.scan, policy=saved)  # a scan prevents CSE by itself
