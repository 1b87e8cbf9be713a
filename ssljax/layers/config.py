"""The configuration of the transformer block."""

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
from ssljax.layers.experts import ExpertsConfig
from ssljax.layers.sequence_conv import ConvolutionConfig
from ssljax.layers.terms.registry import TermKeys, terms_of

_gelu = functools.partial(nn.gelu, approximate=False)
_gelu_tanh = functools.partial(nn.gelu, approximate=True)
GATED: dict[str, Callable[[jax.Array], jax.Array]] = {  # activations of the gate (Shazeer 2020, "GLU variants")
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
NormPosition = Literal["pre", "post", "sandwich", "after", "parallel", "parallel_one"]
Component = Literal["q", "k", "v", "out", "mlp", "norm", "readout"]
PARTS: tuple[Component, ...] = get_args(Component)
KINDS = ("global", "local")


@dataclasses.dataclass(frozen=True)
class BlockConfig(TermKeys):
    """The configuration of a transformer block. Families inherit these keys and set their own defaults."""

    width: int | None = setting(None, ge=1, doc="width of the tokens between blocks (d_model); None: the preset's")
    heads: int | None = setting(None, ge=1, doc="number of attention heads; None: the preset's")
    kv_heads: int | None = setting(
        None, ge=1, doc="number of key and value heads, fewer for grouped-query attention; None: heads"
    )
    head_dim: int | None = setting(None, ge=1, doc="width of q, k and v in one head; None: width / heads")
    mlp_ratio: float = setting(4.0, gt=0, doc="hidden width of the feed-forward part as a multiple of width")
    mlp_dim: int | None = setting(None, ge=1, doc="hidden width of the feed-forward part; None: mlp_ratio * width")
    norm: Literal["layer", "rms", "rms_plus_one"] = setting(
        "layer",
        doc='LayerNorm; "rms", RMSNorm without mean and bias; "rms_plus_one", RMSNorm that stores its scale minus 1 '
        "(Gemma)",
    )
    norm_position: NormPosition = setting(
        "pre",
        doc='position of norms: "pre", before attention and feed-forward part, and after the last block; "post", after '
        'each sum; "sandwich", before and after each part (Gemma 2); "after", after each part, before the sum '
        '(OLMo 2); "parallel", both parts read the same input (GPT-NeoX); "parallel_one", with one norm for both '
        "(PaLM)",
    )
    first_norm: bool = fixed(
        True, doc="norm before the attention of the first block; false: no norm there (ModernBERT)"
    )
    norm_eps: float = setting(
        1e-6, gt=0, doc="number added to the variance (RMSNorm: to the mean square) before the square root"
    )
    activation: Activation = setting(
        "gelu",
        doc='activation of the feed-forward part; "gelu_tanh" approximates "gelu"; "swiglu", "geglu", "geglu_tanh" and '
        '"reglu" add a gate with a third matrix',
    )
    bias: bool = setting(True, doc="linear maps and LayerNorms of the blocks have biases")
    bias_except: tuple[Component, ...] = fixed(
        (), doc="components that are exceptions to `bias`: with a bias if it is false, without one if it is true"
    )
    qk_norm: bool = setting(False, doc="RMSNorm of q and k, before rotation (Qwen 3)")
    qk_norm_over: Literal["head", "projection"] = fixed(
        "head",
        doc='elements that a norm of q or k covers: "head", one head (Qwen 3); "projection", all heads of a token '
        "(OLMo 2)",
    )
    attention_scale: float | None = fixed(
        None, doc="factor of attention logits; None: 1/sqrt(head_dim (1 + number of position products))"
    )
    scaled_by_layer: bool = fixed(
        False, doc="divide attention logits by the number of the layer, from 1 (GPT-2's option against overflow)"
    )
    attention_cap: float | None = setting(
        None, gt=0, doc="attention logits x become cap tanh(x / cap) (Gemma 2); None: no cap"
    )
    talking_heads: bool = setting(
        False,
        doc="mix the attention logits of all heads by a learned matrix [heads, heads]; a second matrix mixes the "
        "weights after the softmax (Shazeer 2020)",
    )
    layer_kinds: tuple[Literal["global", "local"], ...] = setting(
        ("global",),
        doc='kinds of the layers, repeated to the depth; a "local" layer attends to the last `window` keys if causal, '
        "else to the keys at a distance of less than `window` on both sides",
    )
    window: int | None = setting(
        None, ge=1, doc="reach of local layers in tokens, see `layer_kinds`; required with local layers"
    )
    rope_theta: float | None = setting(
        None, gt=0, doc="base of the frequencies of rotary positions; None: no rotary positions"
    )
    rope_theta_local: float | None = setting(
        None, gt=0, doc="base of the frequencies of rotary positions in local layers; None: rope_theta"
    )
    rope_fraction: float = setting(1.0, gt=0, le=1, doc="fraction of each head that is rotated")
    rope_layers: tuple[bool, ...] = fixed(
        (True,), doc="layers with rotary positions, repeated to the depth; false: a layer without them (SmolLM 3)"
    )
    rope_scaling: Any = setting(
        None, registry=positions.SCALINGS, doc="scaling of rotary positions for contexts longer than in training"
    )
    rope_scaling_local: bool = fixed(
        True, doc="rope_scaling applies to local layers too; false: to global layers alone (Gemma 3)"
    )
    experts: ExpertsConfig | None = setting(
        None, doc="mixture of experts instead of the feed-forward part; None: no experts"
    )
    convolution: ConvolutionConfig | None = setting(
        None, doc="convolution whose result is added to the output of the first block (DeBERTa v2); None: none"
    )
    repeats: int = fixed(
        1, doc="number of times that each group of blocks is applied in succession with the same parameters (ALBERT)"
    )
    group: int = fixed(1, doc="number of blocks in a group that `repeats` applies (ALBERT: 1)")
    dropout: float = setting(
        0.0,
        ge=0,
        lt=1,
        doc="dropout rate after embeddings, attention and feed-forward part; attention weights have no dropout",
    )
    drop_path: float = setting(
        0.0, ge=0, lt=1, doc="rate of stochastic depth in the last block; it grows linearly from 0 in the first block"
    )
    layer_scale: float | None = setting(
        None, gt=0, doc="initial value of a learned scale of each residual branch (Touvron 2021); None: no scale"
    )
    init: Literal["xavier", "normal", "gpt2"] = setting(
        "xavier",
        doc='initialiser of matrices: "xavier", uniform; "normal", standard deviation 0.02; "gpt2", normal, with '
        "0.02/sqrt(2 depth) for matrices that write to the residual stream",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32",
        doc="type of activations; parameters are float32, and the loss is scaled where activations are float16",
    )
    # "dots" stores 2.4 times less than "none" and is faster on a CPU: 6 scanned layers of width 192 on 64 x 64 tokens,
    # forward and backward, 256 against 611 MiB and 1.3 against 1.5 s of processor time.
    remat: Literal["none", "full", "dots"] = setting(
        "dots",
        free=True,
        doc='recomputation in the backward pass: "none"; "full", the whole block; "dots", everything except '
        "products with parameters",
    )
    scan: bool = setting(
        True,
        free=True,
        doc="compile one block and loop over the layers; false: compile every layer; the parameter tree is the same",
    )
    kernel: Literal["auto", "ring", "cudnn", "splash", "blocked_causal", "blockwise", "xla"] = setting(
        "auto",
        free=True,
        doc='attention kernel to try first; "auto": the first of the platform\'s list that supports the request',
    )
    strict: bool = setting(False, free=True, doc="refuse to fall back to a slower attention kernel")
    mup_base_width: int | None = setting(
        None,
        ge=1,
        doc="width at which muP equals the standard parametrisation; initial values, learning rates and logits scale "
        "from there, so that the best learning rate of a narrow model is that of a wide one (Yang et al. 2022); None: "
        "no muP",
    )
    mup_base_heads: int | None = setting(
        None, ge=1, doc="number of heads at `mup_base_width`, if the width of a head grows; None: the number grows"
    )

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
        for name in ("repeats", "group"):
            if self.experts is not None and getattr(self, name) > 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, must be 1 with experts")
        if self.mup_base_heads is not None and (self.mup_base_width is None or self.head_dim is not None):
            raise ValueError(f"mup_base_heads: got {self.mup_base_heads}; needs mup_base_width, and no head_dim")
        for term in terms_of(self):
            term.check()
        if not self.layer_kinds:
            raise ValueError("layer_kinds: got an empty list, must hold at least one kind")
        if not self.rope_layers:
            raise ValueError("rope_layers: got an empty list, must hold at least one value")

    @property
    def head_width(self) -> int:
        """The width of one head."""
        return self.head_dim or self.known("width") // self.known("heads")

    @property
    def width_ratio(self) -> float:
        """The width ratio of muP (`ssljax.layers.width`); 1 without muP."""
        return 1.0 if self.mup_base_width is None else self.known("width") / self.mup_base_width

    @property
    def head_ratio(self) -> float:
        """The width of a head as a multiple of that at the base width of muP; 1 without muP."""
        if self.mup_base_width is None or self.mup_base_heads is None:
            return 1.0
        return self.head_width * self.mup_base_heads / self.mup_base_width

    @property
    def rotary_width(self) -> int:
        """Width of the rotated part of a head, which sets the frequencies; if odd, one more element is rotated."""
        return int(self.head_width * self.rope_fraction)

    @property
    def groups(self) -> int:
        """The number of key and value heads."""
        return self.kv_heads or self.known("heads")

    @property
    def hidden(self) -> int:
        """The width inside the feed-forward part."""
        return self.mlp_dim or round(self.mlp_ratio * self.known("width"))

    def kinds(self, layers: int) -> list[str]:
        """The kind of each of a number of layers: `layer_kinds`, repeated."""
        return [self.layer_kinds[i % len(self.layer_kinds)] for i in range(layers)]

    def known(self, name: str) -> int:
        """The value of a field that is None only before `with_preset()` fills it in."""
        value = getattr(self, name)
        assert value is not None, f"{name} is None; with_preset() fills it in"
        return value

    def has_bias(self, component: str) -> bool:
        """Returns True if a component has a bias; "readout" is the dense layer before the read-out."""
        return self.bias != (component in self.bias_except)

    def new_norm(self, name: str | None = None) -> Norm:
        """A norm over the width of tokens."""
        return Norm(self.norm, self.norm_eps, self.has_bias("norm"), name=name)

    def initializer(self, depth: int | None = None) -> Callable[..., jax.Array]:
        """The initialiser of matrices; pass the depth of the stack for matrices that write to the residual stream."""
        if self.init == "xavier":
            return nn.initializers.xavier_uniform()
        shrink = (2 * depth) ** -0.5 if depth and self.init == "gpt2" else 1.0
        return self.normal(shrink)

    def input_initializer(self) -> Callable[..., jax.Array]:
        """The initialiser of matrices whose inputs do not grow with the width: that of the base width of muP."""
        if self.init != "xavier":
            return nn.initializers.normal(0.02)
        base = self.mup_base_width or self.known("width")

        def xavier_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            limit = (6 / (shape[-2] + base)) ** 0.5
            return jax.random.uniform(key, shape, dtype, -limit, limit)

        return xavier_uniform

    def normal(self, factor: float = 1.0) -> Callable[..., jax.Array]:
        """Normal initialiser of matrices with the inputs of a block, of standard deviation 0.02 x factor."""
        return nn.initializers.normal(0.02 * factor * self.width_ratio**-0.5)
