"""What the one transformer block can be: its configuration."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.base.schema import fixed, setting
from ssljax.layers import positions
from ssljax.layers.dense import Norm
from ssljax.layers.disentangled import DisentangledConfig
from ssljax.layers.experts import ExpertsConfig
from ssljax.layers.sequence_conv import ConvolutionConfig

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
    """What a block computes. Families inherit these keys and set their own defaults; what is `fixed()` is no key but
    belongs to a family."""

    width: int | None = setting(None, ge=1)  # of the tokens between blocks (d_model); None: that of `preset`
    heads: int | None = setting(None, ge=1)  # of attention; None: that of `preset`
    kv_heads: int | None = setting(None, ge=1)  # fewer than heads: grouped-query attention
    head_dim: int | None = setting(None, ge=1)  # of q, k and v in one head; None: width / heads
    mlp_ratio: float = setting(4.0, gt=0)  # hidden width of the feed-forward part / width
    mlp_dim: int | None = setting(None, ge=1)  # that hidden width itself; None: mlp_ratio * width
    # LayerNorm; RMSNorm, which subtracts no mean and has no bias; the same with its scale kept less 1 (Gemma)
    norm: Literal["layer", "rms", "rms_plus_one"] = "layer"
    # where: before attention and feed-forward and at the end; after each sum; before and after each part (Gemma 2);
    # before both parts, which read the same input (NeoX); the same with one norm for both (PaLM)
    norm_position: NormPosition = "pre"
    first_norm: bool = fixed(True)  # false: the attention of the first block reads its input as it is (ModernBERT)
    norm_eps: float = setting(1e-6, gt=0)  # added to the variance ("rms": the mean square) before the root
    # of the feed-forward part; "gelu_tanh" approximates "gelu"; the "...glu" have a gate, a third matrix
    activation: Activation = "gelu"
    bias: bool = True  # of the blocks' linear maps and LayerNorms
    # parts with a bias where `bias` is false, without one where it is true
    bias_except: tuple[Part, ...] = fixed(())
    qk_norm: bool = False  # RMSNorm of q and k in every head, before they are turned (Qwen 3)
    # of the logits; None: 1/sqrt(head_dim), of head_dim times the number of terms where attention is disentangled
    attention_scale: float | None = fixed(None)
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
    layer_bias: bool = fixed(False)  # those of the grid are learned by each layer for itself
    bias_rows: int = fixed(0)  # and how many they are
    relative_buckets: tuple[int, int] = setting((32, 128), ge=2)  # how many, and the distance where the last begins
    disentangled: DisentangledConfig | None = None  # contents attend to learned vectors of distances too (DeBERTa)
    rope_theta: float | None = setting(None, gt=0)  # base of the frequencies of rotary positions; None: not rotary
    rope_theta_local: float | None = setting(None, gt=0)  # that of local layers; None: the same
    rope_fraction: float = setting(1.0, gt=0, le=1)  # of each head is turned
    rope_scaling: Any = setting(None, registry=positions.SCALINGS)  # for longer contexts than in training
    experts: ExpertsConfig | None = None  # in the place of the feed-forward part
    convolution: ConvolutionConfig | None = None  # beside the first block (DeBERTa v2)
    repeats: int = fixed(1)  # how often each block is applied in a row with the same parameters (ALBERT)
    dropout: float = setting(0.0, ge=0, lt=1)  # rate after embeddings, attention and MLP; not of attention weights
    drop_path: float = setting(0.0, ge=0, lt=1)  # of the last block; grows linearly from 0 at the first
    layer_scale: float | None = setting(None, gt=0)  # initial value (Touvron 2021)
    # "xavier": uniform; "normal": standard deviation 0.02; "gpt2": that, and 0.02/sqrt(2 depth) into the residual
    init: Literal["xavier", "normal", "gpt2"] = "xavier"
    # of activations; parameters are float32, and the loss is scaled where activations are float16
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # What the backward pass computes again: nothing, the whole block, or all but the products with parameters. The last
    # stores 2.4 times less than the first and is faster on a CPU: 6 scanned layers of width 192 on 64 x 64 tokens,
    # forward and backward, 256 against 611 MiB and 1.3 against 1.5 s of processor time.
    remat: Literal["none", "full", "dots"] = setting("dots", free=True)
    scan: bool = setting(True, free=True)  # one compiled block for all layers, or one each; the same parameters
    # attention kernel to try first; "auto": the first of the backend's list that can do what is asked
    kernel: Literal["auto", "cudnn", "splash", "blocked_causal", "blockwise", "xla"] = setting("auto", free=True)
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
