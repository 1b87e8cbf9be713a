"""The one transformer block, configured, and the stack of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import setting
from ssljax.layers.attention import attend
from ssljax.layers.dense import Dense, Norm, constrain, parameter
from ssljax.layers.masks import Mask
from ssljax.layers.noise import Noise, drop_path, dropout
from ssljax.layers.positions import rotary_tables, rotate

GATED = ("swiglu", "geglu")
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "swiglu": nn.silu,
    "geglu": functools.partial(nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What a block computes. Families inherit these keys and set their own defaults."""

    width: int | None = setting(None, ge=1)  # of the tokens between blocks (d_model); None: that of `size`
    heads: int | None = setting(None, ge=1)  # of attention; None: that of `size`
    kv_heads: int | None = setting(None, ge=1)  # fewer than heads: grouped-query attention
    head_dim: int | None = setting(None, ge=1)  # width / heads
    mlp_ratio: float = setting(4.0, gt=0)  # hidden width of the feed-forward part / width
    mlp_dim: int | None = setting(None, ge=1)  # mlp_ratio * width
    norm: Literal["layer", "rms"] = "layer"  # LayerNorm, or RMSNorm, which subtracts no mean and has no bias
    norm_position: Literal["pre", "post"] = "pre"  # before attention and feed-forward and at the end, or after each sum
    norm_eps: float = setting(1e-6, gt=0)  # added to the variance ("rms": the mean square) before the root
    # of the feed-forward part; "gelu_tanh" approximates "gelu"; "swiglu" and "geglu" have a gate, a third matrix
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu", "geglu"] = "gelu"
    bias: bool = True  # of the blocks' linear maps and LayerNorms
    rope_theta: float | None = setting(None, gt=0)  # rotary positions
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
        if self.rope_theta is not None and self.head_width % 2:
            raise ValueError(f"rope_theta: rotary positions need an even head width, got {self.head_width}")

    @property
    def head_width(self) -> int:
        """The width of one head."""
        return self.head_dim or self.known("width") // self.known("heads")

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

    def initializer(self, depth: int | None = None) -> Callable[..., jax.Array]:
        """Of kernels; with a depth, of those that write into the residual stream."""
        if self.init == "xavier":
            return nn.initializers.xavier_uniform()
        shrink = (2 * depth) ** -0.5 if depth and self.init == "gpt2" else 1.0
        return nn.initializers.normal(0.02 * shrink)


class Attention(nn.Module):
    """Multi-head self-attention with its projections."""

    config: BlockConfig
    depth: int

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, mask: Mask, rotary: Any) -> jax.Array:
        c = self.config
        dense = functools.partial(Dense, bias=c.bias, dtype=c.dtype)

        def project(name: str, heads: int, axis: str) -> jax.Array:
            y = dense(heads * c.head_width, ("embed", axis), initializer=c.initializer(), name=name)(x_BxTxD)
            return y.reshape(*x_BxTxD.shape[:2], heads, c.head_width)

        q = project("q", c.known("heads"), "heads")
        k, v = project("k", c.groups, "kv"), project("v", c.groups, "kv")
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        y = attend(q, k, v, mask, kernel=c.kernel, strict=c.strict).reshape(*x_BxTxD.shape[:2], -1)
        return dense(c.known("width"), ("heads", "embed"), initializer=c.initializer(self.depth), name="out")(y)


class FeedForward(nn.Module):
    """Two matrices with an activation between, or three with a gate (Shazeer 2020)."""

    config: BlockConfig
    depth: int

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        c = self.config
        dense = functools.partial(Dense, bias=c.bias, dtype=c.dtype)
        act = _ACTIVATIONS[c.activation]
        h = dense(c.hidden, ("embed", "mlp"), initializer=c.initializer(), name="in")(x_BxTxD)
        if c.activation in GATED:
            h = act(dense(c.hidden, ("embed", "mlp"), initializer=c.initializer(), name="gate")(x_BxTxD)) * h
        else:
            h = act(h)
        return dense(c.known("width"), ("mlp", "embed"), initializer=c.initializer(self.depth), name="out")(h)


class Block(nn.Module):
    """x + attention, x + feed-forward, with the norm before or after (Xiong 2020). Scanned: returns (x, None)."""

    config: BlockConfig
    depth: int  # of the whole stack, for the initialiser

    @nn.compact
    def __call__(
        self, x: jax.Array, layer: jax.Array, drop: jax.Array, mask: Mask, rotary: Any, noise: Noise | None
    ) -> tuple[jax.Array, None]:
        c = self.config
        here = noise.at(layer) if noise is not None else None
        parts = {
            "attention": Attention(c, self.depth, name="attention"),
            "mlp": FeedForward(c, self.depth, name="mlp"),
        }
        for name, part in parts.items():
            norm = Norm(c.norm, c.norm_eps, c.bias, name=f"{name}_norm")
            h = norm(x) if c.norm_position == "pre" else x
            y = part(h, mask, rotary) if isinstance(part, Attention) else part(h)
            if c.layer_scale is not None:
                init = nn.initializers.constant(c.layer_scale)
                y = y * parameter(self, f"{name}_scale", init, ("embed",), y.shape[-1:]).astype(y.dtype)
            if here is not None:
                y = dropout(y, c.dropout, here.at(f"{name}/dropout"))
                if c.drop_path:
                    y = drop_path(y, drop, here.at(f"{name}/drop_path"))
            x = x + y
            if c.norm_position == "post":
                x = norm(x)
        return constrain(x), None


class Stack(nn.Module):
    """`depth` blocks, and the final norm where blocks are pre-norm.

    Parameters are the same tree, leaves [depth, ...] under `layers`, whether the blocks are scanned or not.
    """

    config: BlockConfig
    depth: int

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: Mask, positions: jax.Array | None = None, noise: Noise | None = None
    ) -> jax.Array:
        """x [B, T, D] -> [B, T, D]; positions int [B, T] for rotary, 0..T-1 if None; without noise no dropout."""
        c = self.config
        rotary = None
        if c.rope_theta is not None:
            positions = jnp.arange(x.shape[1])[None] if positions is None else positions
            rotary = rotary_tables(positions, c.head_width, c.rope_theta)
        layers = jnp.arange(self.depth)
        drops = jnp.linspace(0.0, c.drop_path, self.depth)
        x = constrain(x.astype(c.dtype))
        if c.scan or self.is_initializing():
            scanned = nn.scan(
                _remat(c.remat, scanned=True),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=self.depth,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = scanned(c, self.depth, name="layers")(x, layers, drops, mask, rotary, noise)
        else:
            block = _remat(c.remat, scanned=False)(c, self.depth, parent=None)
            trees = unstack_layers(nn.unbox(self.variables["params"]["layers"]), self.depth)
            for layer, params in enumerate(trees):
                x, _ = block.apply({"params": params}, x, layers[layer], drops[layer], mask, rotary, noise)
        if c.norm_position == "pre":
            x = Norm(c.norm, c.norm_eps, c.bias, name="norm")(x)
        return x


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
