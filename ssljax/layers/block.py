"""The one transformer block, configured, and the stack of it."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.schema import given, setting
from ssljax.layers import positions
from ssljax.layers.attention import Mix, attend
from ssljax.layers.conv1d import Addend, Convolution, ConvolutionConfig
from ssljax.layers.dense import Dense, Norm, constrain, normalized, parameter
from ssljax.layers.disentangled import DisentangledConfig, Distances, logit_scale, position_logits
from ssljax.layers.experts import Experts, ExpertsConfig
from ssljax.layers.masks import Full, Given, Mask, Sliding, is_causal
from ssljax.layers.noise import Noise, drop_path, dropout
from ssljax.layers.relative import Relative, RelativeLogits

_gelu = functools.partial(nn.gelu, approximate=False)
_gelu_tanh = functools.partial(nn.gelu, approximate=True)
GATED: dict[str, Callable[[jax.Array], jax.Array]] = {  # the activation of the gate (Shazeer 2020)
    "swiglu": nn.silu,
    "geglu": _gelu,
    "geglu_tanh": _gelu_tanh,
    "reglu": nn.relu,
}
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
    **GATED,
}
Activation = Literal[
    "gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh", "swiglu", "geglu", "geglu_tanh", "reglu"
]
NormPosition = Literal["pre", "post", "sandwich", "parallel", "parallel_one"]
Part = Literal["q", "k", "v", "out", "mlp", "norm", "readout"]
PARTS: tuple[Part, ...] = get_args(Part)
KINDS = ("global", "local")


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What a block computes. Families inherit these keys and set their own defaults; what is `given()` is no key but
    belongs to a family."""

    width: int | None = setting(None, ge=1)  # of the tokens between blocks (d_model); None: that of `size`
    heads: int | None = setting(None, ge=1)  # of attention; None: that of `size`
    kv_heads: int | None = setting(None, ge=1)  # fewer than heads: grouped-query attention
    head_dim: int | None = setting(None, ge=1)  # of q, k and v in one head; None: width / heads
    mlp_ratio: float = setting(4.0, gt=0)  # hidden width of the feed-forward part / width
    mlp_dim: int | None = setting(None, ge=1)  # that hidden width itself; None: mlp_ratio * width
    # LayerNorm; RMSNorm, which subtracts no mean and has no bias; the same with its scale kept less 1 (Gemma)
    norm: Literal["layer", "rms", "rms_plus_one"] = "layer"
    # where: before attention and feed-forward and at the end; after each sum; before and after each part (Gemma 2);
    # before both parts, which read the same input (NeoX); the same with one norm for both (PaLM)
    norm_position: NormPosition = "pre"
    first_norm: bool = given(True)  # false: the attention of the first block reads its input as it is (ModernBERT)
    norm_eps: float = setting(1e-6, gt=0)  # added to the variance ("rms": the mean square) before the root
    # of the feed-forward part; "gelu_tanh" approximates "gelu"; the "...glu" have a gate, a third matrix
    activation: Activation = "gelu"
    bias: bool = True  # of the blocks' linear maps and LayerNorms
    # parts with a bias where `bias` is false, without one where it is true
    bias_except: tuple[Part, ...] = given(())
    qk_norm: bool = False  # RMSNorm of q and k in every head, before they are turned (Qwen 3)
    # of the logits; None: 1/sqrt(head_dim), of head_dim times the number of terms where attention is disentangled
    attention_scale: float | None = given(None)
    attention_cap: float | None = setting(None, gt=0)  # logits x become cap tanh(x / cap) (Gemma 2)
    # logits, and after the softmax weights, of all heads are mixed by learned matrices [heads, heads] (Shazeer 2020)
    talking_heads: bool = False
    # kinds of the layers, repeated to the depth; a "local" one sees `window` keys (the last ones if causal, else those
    # nearer than that on both sides)
    layer_kinds: tuple[Literal["global", "local"], ...] = ("global",)
    window: int | None = setting(None, ge=1)
    # added to logits: the distance times a slope of the head; learned numbers for buckets of it (T5), or for distances
    # in rows and columns of patches (BEiT); products of the query with learned vectors of the distance and of the
    # segment (XLNet)
    position_bias: Literal["none", "alibi", "relative", "grid", "xlnet"] = "none"
    layer_bias: bool = given(False)  # those of the grid are learned by each layer for itself
    bias_rows: int = given(0)  # and how many they are
    relative_buckets: tuple[int, int] = setting((32, 128), ge=2)  # how many, and the distance where the last begins
    disentangled: DisentangledConfig | None = None  # contents attend to learned vectors of distances too (DeBERTa)
    rope_theta: float | None = setting(None, gt=0)  # base of the frequencies of rotary positions; None: not rotary
    rope_theta_local: float | None = setting(None, gt=0)  # that of local layers; None: the same
    rope_fraction: float = setting(1.0, gt=0, le=1)  # of each head is turned
    rope_scaling: Any = setting(None, registry=positions.SCALINGS)  # for longer contexts than in training
    experts: ExpertsConfig | None = None  # in the place of the feed-forward part
    convolution: ConvolutionConfig | None = None  # beside the first block (DeBERTa v2)
    repeats: int = given(1)  # how often each block is applied in a row with the same parameters (ALBERT)
    dropout: float = setting(0.0, ge=0, lt=1)  # rate after embeddings, attention and MLP; not of attention weights
    drop_path: float = setting(0.0, ge=0, lt=1)  # of the last block; grows linearly from 0 at the first
    layer_scale: float | None = setting(None, gt=0)  # initial value (Touvron 2021)
    # "xavier": uniform; "normal": standard deviation 0.02; "gpt2": that, and 0.02/sqrt(2 depth) into the residual
    init: Literal["xavier", "normal", "gpt2"] = "xavier"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters are float32
    # What the backward pass computes again: nothing, the whole block, or all but the products with parameters. The last
    # stores 2.4 times less than the first and is faster on a CPU: 6 scanned layers of width 192 on 64 x 64 tokens,
    # forward and backward, 256 against 611 MiB and 1.3 against 1.5 s of processor time.
    remat: Literal["none", "full", "dots"] = setting("dots", free=True)
    scan: bool = setting(True, free=True)  # one compiled block for all layers, or one each; the same parameters
    # attention kernel to try first; "auto": the first of the backend's list that can do what is asked
    kernel: Literal["auto", "cudnn", "blocked_causal", "blockwise", "xla"] = setting("auto", free=True)
    strict: bool = setting(False, free=True)  # no fallback to a slower attention kernel

    def validate(self) -> None:
        width, heads, head_dim = self.width, self.heads, self.head_dim
        if width is None or heads is None:
            raise ValueError(f"{'width' if width is None else 'heads'}: missing; a number is required")
        if head_dim is None and width % heads:
            raise ValueError(f"heads: {heads} does not divide the width {width}; change one, or give head_dim")
        if heads % self.groups:
            raise ValueError(f"kv_heads: {self.kv_heads} does not divide the {heads} heads")
        if self.rope_theta is not None and self.rotary_width == self.head_width and self.head_width % 2:
            raise ValueError(f"rope_theta: rotary positions need an even head width, got {self.head_width}")
        if self.disentangled is not None and (self.rope_theta is not None or self.qk_norm):
            other = "rope_theta" if self.rope_theta is not None else "qk_norm"
            raise ValueError(f"{other}: got {getattr(self, other)}, which disentangled attention excludes")
        if "local" in self.layer_kinds and self.window is None:
            raise ValueError("window: missing; local layers need a number of keys")
        if self.experts is not None and self.repeats > 1:
            raise ValueError(f"repeats: got {self.repeats}, must be 1 with experts")
        if self.position_bias == "xlnet" and width % 2:
            raise ValueError(f"position_bias: the sinusoids of 'xlnet' need an even width, got {width}")
        if not self.layer_kinds:
            raise ValueError("layer_kinds: got an empty list, must hold at least one kind")

    @property
    def head_width(self) -> int:
        """The width of one head."""
        return self.head_dim or self.known("width") // self.known("heads")

    @property
    def rotary_width(self) -> int:
        """How many elements of a head are turned; an odd number is rounded up, its frequencies are not (GPT-NeoX)."""
        return int(self.head_width * self.rope_fraction)

    @property
    def groups(self) -> int:
        """The number of key and value heads."""
        return self.kv_heads or self.known("heads")

    @property
    def hidden(self) -> int:
        """The width inside the feed-forward part."""
        return self.mlp_dim or round(self.mlp_ratio * self.known("width"))

    def known(self, name: str) -> int:
        """A field that may be None in a config, but not in one that is built from."""
        value = getattr(self, name)
        assert value is not None, f"{name} is not resolved"
        return value

    def has_bias(self, part: str) -> bool:
        """Whether a part has a bias; "readout": its transform."""
        return self.bias != (part in self.bias_except)

    def new_norm(self, name: str | None = None) -> Norm:
        """A norm over the width."""
        return Norm(self.norm, self.norm_eps, self.has_bias("norm"), name=name)

    def initializer(self, depth: int | None = None) -> Callable[..., jax.Array]:
        """Of kernels; with a depth, of those that write into the residual stream."""
        if self.init == "xavier":
            return nn.initializers.xavier_uniform()
        shrink = (2 * depth) ** -0.5 if depth and self.init == "gpt2" else 1.0
        return nn.initializers.normal(0.02 * shrink)


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


class Out(NamedTuple):
    """What a layer gives besides its tokens."""

    state: jax.Array | None  # [B, T, D], if asked for
    cache: Cache | None  # of these tokens, where there is one for them
    router: jax.Array | None = None  # float32 logits [B, T, E] where there are experts


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
        return Mix(*(parameter(self, name, same, (None, None), (heads, heads)) for name in names))


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
    table = parameter(module, "relative_bias", nn.initializers.zeros, names, shape)
    if pairs.stretch is not None:
        table = jnp.asarray(pairs.stretch) @ table
    return table[jnp.asarray(pairs.rows)].transpose(2, 0, 1)[None]


def _of_kind(tables: tuple[Any, ...], kind: Any) -> Any:
    if len(tables) == 1 or isinstance(kind, int):
        return tables[kind if len(tables) > 1 else 0]
    return jax.tree.map(lambda *xs: jnp.stack(xs)[kind], *tables)


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
                y = y * parameter(self, f"{name}_scale", init, ("embed",), y.shape[-1:]).astype(y.dtype)
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
                metadata_params={nn.PARTITION_NAME: "layers"},
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
        if cache is not None:
            assert out.cache is not None
            out = out._replace(cache=cache.with_tokens(out.cache, start))
        if c.norm_position != "post" and self.final_norm:
            x = c.new_norm("norm")(x)
        return x, out

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
        table = parameter(self, "relative_bias", nn.initializers.normal(0.02), names, shape)
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
        distance = jnp.arange(queries)[:, None] - jnp.arange(keys)[None, None]
        distance += 0 if start is None else jnp.reshape(start, (-1, 1, 1))
        rows = jnp.asarray(d.rows(ends))[distance - ends[0]]
        init, shape = nn.initializers.normal(0.02), (2 * d.span, c.known("width"))
        table = parameter(self, "distances", init, ("positions", "embed"), shape)
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
                c, self.depth, self.cross, self.states, c.experts.at(i), name=f"block_{i}"
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
