"""The one transformer block, configured, and the stack of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.schema import given, setting
from ssljax.layers import positions
from ssljax.layers.attention import attend
from ssljax.layers.dense import Dense, Norm, constrain, parameter
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
    """What a block computes. Families inherit these keys and set their own defaults."""

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
    bias_except: tuple[Part, ...] = ()
    qk_norm: bool = False  # RMSNorm of q and k in every head, before they are turned (Qwen 3)
    attention_scale: float | None = setting(None, gt=0)  # of the logits; None: 1/sqrt(head_dim)
    attention_cap: float | None = setting(None, gt=0)  # logits x become cap tanh(x / cap) (Gemma 2)
    # kinds of the layers, repeated to the depth; a "local" one sees `window` keys (the last ones if causal, else those
    # nearer than that on both sides)
    layer_kinds: tuple[Literal["global", "local"], ...] = ("global",)
    window: int | None = setting(None, ge=1)
    # added to logits: the distance times a slope of the head, learned numbers for buckets of it (T5), or products of
    # the query with learned vectors of the distance and of the segment (XLNet)
    position_bias: Literal["none", "alibi", "relative", "xlnet"] = "none"
    relative_buckets: tuple[int, int] = setting((32, 128), ge=2)  # how many, and the distance where the last begins
    rope_theta: float | None = setting(None, gt=0)  # base of the frequencies of rotary positions; None: not rotary
    rope_theta_local: float | None = setting(None, gt=0)  # that of local layers; None: the same
    rope_fraction: float = setting(1.0, gt=0, le=1)  # of each head is turned
    rope_scaling: Any = setting(None, registry=positions.SCALINGS)  # for longer contexts than in training
    experts: ExpertsConfig | None = None  # in the place of the feed-forward part
    repeats: int = setting(1, ge=1)  # how often each block is applied in a row with the same parameters (ALBERT)
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
    kernel: Literal["auto", "cudnn", "blocked_causal", "xla"] = setting("auto", free=True)
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
    """What attention remembers of the tokens before. With a leading axis of layers: of a stack."""

    k: jax.Array  # [B, S, G, K], S the most tokens that there may be
    v: jax.Array
    cross_k: jax.Array | None = None  # of the memory, [B, M, G, K]
    cross_v: jax.Array | None = None


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
    relative: Relative | None = None  # the same, where it depends on the query
    memory: jax.Array | None = None  # [B, M, D], for cross-attention
    memory_mask: Mask | None = None
    start: jax.Array | None = None  # int32, where the queries stand in the cache
    noise: Noise | None = None


class Out(NamedTuple):
    """What a layer gives besides its tokens."""

    state: jax.Array | None  # [B, T, D], if asked for
    cache: Cache | None
    router: jax.Array | None = None  # float32 logits [B, T, E] where there are experts


class Attention(nn.Module):
    """Multi-head attention with its projections: of the tokens to themselves, or to a memory."""

    config: BlockConfig
    depth: int
    cross: bool = False

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, layer: Layer, shared: Shared) -> tuple[jax.Array, Cache | None]:
        c = self.config
        heads, width = c.known("heads"), c.head_width

        def project(x: jax.Array, name: str, count: int, axis: str) -> jax.Array:
            dense = Dense(count * width, ("embed", axis), c.has_bias(name), c.initializer(), c.dtype, name=name)
            return dense(x).reshape(*x.shape[:2], count, width)

        cache = layer.cache
        q = project(x_BxTxD, "q", heads, "heads")
        k: Any
        v: Any
        if self.cross and shared.memory is None:  # an earlier call has left them in the cache
            assert cache is not None
            k, v = cache.cross_k, cache.cross_v
        else:
            attended = x_BxTxD if shared.relative is None else x_BxTxD[:, : shared.relative.row.shape[-1]]
            source: Any = shared.memory if self.cross else attended
            k, v = project(source, "k", c.groups, "kv"), project(source, "v", c.groups, "kv")
        if c.qk_norm:
            q = Norm("rms", c.norm_eps, axis=None, name="q_norm")(q)
            k = Norm("rms", c.norm_eps, axis=None, name="k_norm")(k)
        attention = functools.partial(
            attend, scale=c.attention_scale, cap=c.attention_cap, kernel=c.kernel, strict=c.strict
        )
        if self.cross:
            y = attention(q, k, v, shared.memory_mask or Full())
            cache = None if cache is None else cache._replace(cross_k=k, cross_v=v)
        else:
            if shared.rotary[0] is not None:
                tables = _of_kind(shared.rotary, layer.kind)
                q, k = positions.rotate(q, tables), positions.rotate(k, tables)
            if cache is not None and shared.start is not None:
                write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=shared.start, axis=1)
                k, v = write(cache.k, k.astype(cache.k.dtype)), write(cache.v, v.astype(cache.v.dtype))
                cache = cache._replace(k=k, v=v)
            bias = shared.bias
            if shared.relative is not None:
                scale = c.attention_scale or width**-0.5
                logits = RelativeLogits(c.initializer(), c.dtype, name="relative")
                q, bias = logits(q, shared.relative, scale)
            ways = [functools.partial(attention, mask=mask, bias=bias) for mask in shared.masks]
            if len(ways) == 1 or isinstance(layer.kind, int):
                y = ways[layer.kind if len(ways) > 1 else 0](q, k, v)
            else:  # each kind is a branch of its own, so that its mask and its kernel are known when it is compiled
                y = jax.lax.switch(layer.kind, ways, q, k, v)
        y = y.reshape(*x_BxTxD.shape[:2], -1)
        init = c.initializer(self.depth)
        return Dense(c.known("width"), ("heads", "embed"), c.has_bias("out"), init, c.dtype, name="out")(y), cache


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
        cache, router = layer.cache, None
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
                y, cache = part(h, layer._replace(cache=cache), shared)
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
        x = constrain(x)
        return x, Out(x if self.states else None, cache, router)


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
        states: bool = False,
        segments: jax.Array | None = None,
        keys: int | None = None,
    ) -> tuple[jax.Array, Out]:
        """Runs the blocks.

        Args:
            x: [B, T, D].
            mask: who attends to whom; local layers see less. With a cache: which of its slots may be seen,
                of those before each query.
            where: positions int [B, T] for rotary ones; 0..T-1 if None.
            noise: for dropout and stochastic depth; None = neither.
            memory: [B, M, D] for cross-attention, under `memory_mask`. None with a filled cache.
            cache: of earlier tokens, leaves [depth, ...]; the queries stand at `start` in it.
            states: also give what every block made.
            segments: int [B, T], for logits that depend on them.
            keys: only so many tokens, the first, are attended to.

        Returns:
            tokens [B, T, D]; states [depth * repeats, B, T, D] if asked for, before the final norm; the new cache.
        """
        c = self.config
        total = self.depth * c.repeats
        kinds = [KINDS.index(c.layer_kinds[i % len(c.layer_kinds)]) for i in range(total)]
        length = x.shape[1] if cache is None else cache.k.shape[2]
        shared = Shared(
            self._masks(mask, set(kinds), x.shape[1], length, start),
            self._rotary(where, x.shape[1], length, set(kinds)),
            self._bias(mask, x.shape[1], length, start),
            self._relative(where, x.shape[1], keys or length, segments, start),
            memory,
            memory_mask,
            start,
            noise,
        )
        layers = Layer(jnp.arange(total), jnp.asarray(kinds), jnp.linspace(0.0, c.drop_path, total), cache)
        x = constrain(x.astype(c.dtype))
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
        if c.norm_position != "post" and self.final_norm:
            x = c.new_norm("norm")(x)
        return x, out

    def _masks(self, mask: Mask, kinds: set[int], queries: int, keys: int, start: jax.Array | None) -> tuple[Mask, ...]:
        c = self.config
        if start is not None:  # queries stand at `start` in a cache and see what is before them
            distance = start + jnp.arange(queries)[:, None] - jnp.arange(keys)
            ways = [Given((distance >= 0)[None, None]) & mask]
            if 1 in kinds:
                ways.append(Given(((distance >= 0) & (distance < c.known("window")))[None, None]) & mask)
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

    def _bias(self, mask: Mask, queries: int, keys: int, start: jax.Array | None) -> jax.Array | None:
        """[1, H, queries, keys] of distances, which no mask of padding changes."""
        c = self.config
        if c.position_bias in ("none", "xlnet"):
            return None
        distance = np.arange(keys) - np.arange(keys if start is not None else queries)[:, None]
        if c.position_bias == "alibi":
            bias = -jnp.asarray(positions.alibi_slopes(c.known("heads")))[:, None, None] * np.abs(distance)
            if start is not None:
                bias = jax.lax.dynamic_slice_in_dim(bias, start, queries, 1)
            return bias[None]
        both = start is None and not is_causal(mask)
        buckets = jnp.asarray(positions.relative_buckets(distance, *c.relative_buckets, both))
        if start is not None:
            buckets = jax.lax.dynamic_slice_in_dim(buckets, start, queries, 0)
        shape, names = (c.relative_buckets[0], c.known("heads")), (None, "heads")
        table = parameter(self, "relative_bias", nn.initializers.normal(0.02), names, shape)
        return table[buckets].transpose(2, 0, 1)[None]

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
