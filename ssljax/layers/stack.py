"""Blocks in a row, scanned or not, and what they share: masks, positions, biases."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.layers import positions
from ssljax.layers.block import Block, Out
from ssljax.layers.config import ACTIVATIONS, KINDS, BlockConfig
from ssljax.layers.dense import constrain, parameter
from ssljax.layers.disentangled import Distances
from ssljax.layers.experts import sow_routing
from ssljax.layers.masks import Given, Mask, Sliding, is_causal
from ssljax.layers.multihead import Cache, Layer, Shared, grid_bias
from ssljax.layers.noise import Noise
from ssljax.layers.relative import Relative
from ssljax.layers.roles import HEIGHTS
from ssljax.layers.sequence_conv import Addend, Convolution


class Stack(nn.Module):
    """`depth` blocks, and a final norm unless norms come after each sum.

    Parameters are the same tree, leaves [depth, ...] under `layers`, whether the blocks are scanned or not.
    """

    config: BlockConfig
    depth: int
    cross: bool = False
    final_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: Mask,
        where: jax.Array | None = None,
        noise: Noise | None = None,
        *,
        memory: jax.Array | None = None,
        memory_mask: Mask | None = None,
        cache: Cache | None = None,
        start: jax.Array | None = None,
        rotary: tuple[jax.Array, jax.Array] | None = None,
        pairs: positions.Pairs | None = None,
        states: bool = False,
        segments: jax.Array | None = None,
        keys: int | None = None,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array, Out]:
        """Runs the blocks.

        Args:
            x: [B, T, D].
            mask: who attends to whom; local layers see less. With `start`: which slots of the cache may be seen,
                of those up to each query.
            where: positions int [B, T] for rotary ones; 0..T-1 if None.
            noise: for dropout and stochastic depth; None = neither.
            memory: [B, M, D] for cross-attention, under `memory_mask`. None with a filled cache.
            cache: of earlier tokens, leaves [depth * repeats, ...].
            start: int32 [B], the position in each row of the first of these tokens. None with a cache: it is empty.
            rotary: cosines and sines [B or 1, T, 1, R / 2], where they are not those of a sequence.
            pairs: which bias each pair of tokens has, with `position_bias` "grid".
            states: also give what every block made.
            segments: int [B, T], for logits that depend on them.
            keys: only so many tokens, the first, are attended to.
            valid: bool [B, T], False = padding, which losses of routers leave out; None: no padding.

        Returns:
            tokens [B, T, D]; states [depth * repeats, B, T, D] if asked for, before the final norm; the new cache.
        """
        c = self.config
        total = self.depth * c.repeats
        kinds = [KINDS.index(c.layer_kinds[i % len(c.layer_kinds)]) for i in range(total)]
        slots = x.shape[1] if cache is None or start is None else cache.k.shape[2]
        x = constrain(x.astype(c.dtype))
        if rotary is None:
            # With a cache no length is known, so what depends on it (`Dynamic`) is that of short sequences.
            tables = self._rotary(where, x.shape[1], x.shape[1] if cache is None else 0, set(kinds))
        else:
            tables = (rotary,)
        shared = Shared(
            self._masks(mask, set(kinds), x.shape[1], slots, start),
            tables,
            self._bias(mask, x.shape[1], slots, start, pairs),
            pairs if c.layer_bias else None,
            self._distances(x.shape[1], slots, start),
            self._beside(x, mask, noise, cache),
            self._relative(where, x.shape[1], keys or slots, segments, start),
            memory,
            memory_mask,
            start,
            noise,
        )
        layers = Layer(jnp.arange(total), jnp.asarray(kinds), jnp.linspace(0.0, c.drop_path, total), cache)
        block = (c, self.depth, self.cross, states)
        size = c.repeats if c.experts is None else c.experts.every  # blocks in what is scanned
        if c.scan or self.is_initializing():
            if size > 1:
                layers = jax.tree.map(lambda a: a.reshape(total // size, size, *a.shape[1:]), layers)
            scanned = nn.scan(
                _remat(c.remat, scanned=True) if size == 1 else Repeated if c.repeats > 1 else Period,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=total // size,
                metadata_params={nn.PARTITION_NAME: "layers", HEIGHTS: self._heights(total // size)},
            )
            x, out = scanned(*block, name="layers")(x, layers, shared)
            if size > 1:
                out = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out)
        else:
            trees = unstack_layers(nn.unbox(self.variables["params"]["layers"]), total // size)
            outs = []
            for i in range(total):
                sparse = c.experts is None or c.experts.at(i)
                name = "block" if c.repeats > 1 else f"block_{i % size}"
                params = trees[i // size][name] if size > 1 else trees[i]
                layer = jax.tree.map(lambda a, i=i: a[i], layers)._replace(kind=kinds[i])
                one = _remat(c.remat, scanned=False)(*block, sparse, parent=None)
                x, made = one.apply({"params": params}, x, layer, shared)
                outs.append(made)
            out = Out(*(_stacked([leaf for leaf in leaves if leaf is not None]) for leaves in zip(*outs)))
        sow_routing(self, out.router, valid, c.experts)
        if cache is not None:
            assert out.cache is not None
            out = out._replace(cache=cache.with_tokens(out.cache, start))
        if c.norm_position != "post" and self.final_norm:
            x = c.new_norm("norm")(x)
        return x, out

    def height_of(self, part: str) -> int:
        """The height of a part (`layers.roles`): a convolution belongs to the first block, the rest to no block."""
        return self.depth if part == "convolution" else 0

    def _heights(self, units: int) -> tuple[int, ...]:
        """The height of the first block of each scanned unit."""
        return tuple(range(self.depth, 0, -(self.depth // units)))

    def _masks(self, mask: Mask, kinds: set[int], queries: int, keys: int, start: jax.Array | None) -> tuple[Mask, ...]:
        c = self.config
        if start is not None:  # slots of a cache; what lies behind a query is of nothing yet
            distance = _distance(queries, keys, start)[:, None]
            ways = [Given(distance <= 0) & mask]
            if 1 in kinds:
                ways.append(Given((distance <= 0) & (distance > -c.known("window"))) & mask)
        else:
            ways = [mask]
            if 1 in kinds:
                ways.append(mask & Sliding(c.known("window"), causal=is_causal(mask)))
        return tuple(ways[kind] for kind in sorted(kinds))

    def _rotary(self, where: jax.Array | None, queries: int, length: int, kinds: set[int]) -> tuple[Any, ...]:
        c = self.config
        if c.rope_theta is None:
            return (None,)
        where = jnp.arange(queries)[None] if where is None else where
        thetas = (c.rope_theta, c.rope_theta_local or c.rope_theta)
        return tuple(
            positions.rotary_tables(where, c.rotary_width, thetas[kind], c.rope_scaling, length)
            for kind in sorted(kinds)
        )

    def _bias(
        self, mask: Mask, queries: int, keys: int, start: jax.Array | None, pairs: positions.Pairs | None
    ) -> jax.Array | None:
        """[B or 1, H, queries, keys] of distances, which no mask of padding changes."""
        c = self.config
        if c.position_bias in ("none", "xlnet") or (c.position_bias == "grid" and c.layer_bias):
            return None
        if c.position_bias == "grid":
            assert pairs is not None
            return grid_bias(self, c, pairs)
        if c.position_bias == "alibi":
            slopes = jnp.asarray(positions.alibi_slopes(c.known("heads")))
            return -slopes[:, None, None] * jnp.abs(_distance(queries, keys, start))[:, None]
        shape, names = (c.relative_buckets[0], c.known("heads")), (None, "heads")
        table = parameter(self, "relative_bias", nn.initializers.normal(0.02), names, shape, role="position")
        both = start is None and not is_causal(mask)
        ends = np.arange(1 - max(queries, keys), max(queries, keys))  # all distances that there are
        bias_NxH = table[jnp.asarray(positions.relative_buckets(ends, *c.relative_buckets, both))]
        return bias_NxH[_distance(queries, keys, start) - ends[0]].transpose(0, 3, 1, 2)

    def _distances(self, queries: int, keys: int, start: jax.Array | None) -> Distances | None:
        """Learned vectors of distances, and which of them each pair has."""
        c, d = self.config, self.config.disentangled
        if d is None:
            return None
        ends = np.arange(1 - max(queries, keys), max(queries, keys))  # all distances that there are
        rows = jnp.asarray(d.rows(ends))[-_distance(queries, keys, start) - ends[0]]
        init, shape = nn.initializers.normal(0.02), (2 * d.span, c.known("width"))
        table = parameter(self, "distances", init, ("positions", "embed"), shape, role="position")
        return Distances(c.new_norm("distances_norm")(table) if d.norm else table, rows)

    def _beside(self, x: jax.Array, mask: Mask, noise: Noise | None, cache: Cache | None) -> Addend | None:
        """What the convolution over x adds to the output of the first block."""
        c, conv = self.config, self.config.convolution
        if conv is None:
            return None
        if cache is not None:
            raise UserError("model.convolution: cannot read token by token with a cache (None is required)")
        biased = c.norm == "layer" and c.has_bias("norm")
        module = Convolution(
            conv, ACTIVATIONS[conv.activation], biased, c.initializer(), c.dropout, c.dtype, name="convolution"
        )
        return module(x, mask, noise)

    def _relative(
        self, where: jax.Array | None, queries: int, keys: int, segments: jax.Array | None, start: jax.Array | None
    ) -> Relative | None:
        """Of the queries to the first `keys` tokens (of a cache, where queries stand in one)."""
        if self.config.position_bias != "xlnet":
            return None
        where = jnp.arange(queries)[None] if where is None else where
        of_keys = where[:, :keys] if start is None else jnp.arange(keys)[None]
        table = positions.sinusoidal(np.arange(1 - keys, keys), self.config.known("width"))
        row = where[:, :, None] - of_keys[:, None] + keys - 1
        apart = None if segments is None else segments[:, :, None] != segments[:, None, :keys]
        return Relative(jnp.asarray(table, self.config.dtype), row, apart)


def _distance(queries: int, keys: int, start: jax.Array | None) -> jax.Array:
    """int [B or 1, queries, keys]: position of the key - position of the query, the first of which is `start`."""
    first = jnp.zeros(1, jnp.int32) if start is None else start
    return jnp.arange(keys) - first[:, None, None] - jnp.arange(queries)[:, None]


class Repeated(nn.Module):
    """A block applied several times in a row with the same parameters."""

    config: BlockConfig
    depth: int
    cross: bool = False
    states: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, layers: Layer, shared: Shared) -> tuple[jax.Array, Out]:
        c = self.config
        scanned = nn.scan(
            _remat(c.remat, scanned=True),
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(0, nn.broadcast),
            length=c.repeats,
        )
        return scanned(c, self.depth, self.cross, self.states, name="block")(x, layers, shared)


class Period(nn.Module):
    """Blocks in a row of which one has experts."""

    config: BlockConfig
    depth: int
    cross: bool = False
    states: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, layers: Layer, shared: Shared) -> tuple[jax.Array, Out]:
        c = self.config
        assert c.experts is not None
        outs = []
        for i in range(c.experts.every):
            block = _remat(c.remat, scanned=True)(
                c, self.depth, self.cross, self.states, c.experts.at(i), i, name=f"block_{i}"
            )
            x, out = block(x, jax.tree.map(lambda a, i=i: a[i], layers), shared)
            outs.append(out)
        return x, Out(*(_stacked([leaf for leaf in leaves if leaf is not None]) for leaves in zip(*outs)))


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if trees else None


def _remat(policy: str, scanned: bool) -> Any:
    if policy == "none":
        return Block
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return nn.remat(Block, prevent_cse=not scanned, policy=saved)


def unstack_layers(tree: Any, depth: int) -> list[Any]:
    """The parameters [depth, ...] of a stack as one tree per layer."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(depth)]


def stack_layers(trees: list[Any]) -> Any:
    """One tree per layer as the parameters [depth, ...] of a stack."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
