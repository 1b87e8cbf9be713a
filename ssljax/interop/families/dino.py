"""DINOv2, with and without registers, and DINOv3."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.interop.codecs import GATED_ACTIVATION, Codec
from ssljax.interop.families.vit import (
    ACT,
    BLOCK,
    HIDDEN,
    IMAGE,
    LABELS,
    NORM_EPS,
    QKV_BIAS,
    TOKENS,
    class_token,
    conv,
    encoder,
    outputs,
)
from ssljax.interop.family import Family, Head
from ssljax.interop.fields import SIZES, Biases, Declaration, Field, HFConfig, counts, required
from ssljax.interop.rules import LEADING, Rule, blocks, copy, dense, fused, named, split
from ssljax.models.family import Encoded

_GATED_ACT = Field("activation", "hidden_act", GATED_ACTIVATION)


class _FeedForward(Declaration):
    """`activation` and `mlp_dim` by a whole ratio; two thirds of it, rounded up to a multiple of 8, with a gate."""

    defaults = {"mlp_ratio": 4, "use_swiglu_ffn": False, **ACT.defaults}  # noqa: RUF012 (never mutated)

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        hidden = int(hf_config["hidden_size"] * hf_config["mlp_ratio"])
        if hf_config["use_swiglu_ffn"]:
            return {"activation": "swiglu", "mlp_dim": (int(hidden * 2 / 3) + 7) // 8 * 8}
        return {**ACT.read(hf_config), "mlp_dim": hidden}

    def write(self, config: Any) -> dict[str, Any]:
        gated = config.activation == "swiglu"
        ratio = int(config.hidden * (1.5 if gated else 1) / config.width)
        return {"use_swiglu_ffn": gated, "mlp_ratio": ratio, **({} if gated else ACT.write(config))}


class _Activation(Declaration):
    """`activation`, of a gate if `use_gated_mlp`."""

    defaults = {"use_gated_mlp": False, **ACT.defaults}  # noqa: RUF012 (never mutated)

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        return (_GATED_ACT if hf_config["use_gated_mlp"] else ACT).read(hf_config)

    def write(self, config: Any) -> dict[str, Any]:
        gated = "glu" in config.activation
        return {**(_GATED_ACT if gated else ACT).write(config), "use_gated_mlp": gated}


DINOV2_FIELDS = (
    *counts(width="hidden_size", depth="num_hidden_layers", heads="num_attention_heads"),
    NORM_EPS,
    *IMAGE,
    QKV_BIAS,
    _FeedForward(),
    Field("layer_scale", "layerscale_value", default=1.0),
    Field("mask_token", "use_mask_token", default=True),
    required("apply_layernorm", True),
)
_PARTS = {"query_bias": "q", "key_bias": "k", "value_bias": "v", "proj_bias": "out", "mlp_bias": "mlp"}
# A key, or a group of keys in newer files.
_THETA = Codec(lambda theta, rope: float(theta or (rope or {}).get("rope_theta") or 100.0), lambda theta: (theta, None))
DINOV3_FIELDS = (
    *SIZES,
    NORM_EPS,
    *IMAGE,
    _Activation(),
    Field("layer_scale", "layerscale_value", default=1.0),
    Field("registers", "num_register_tokens", default=0),
    Field("rope_theta", ("rope_theta", "rope_parameters"), _THETA, (None, None)),
    Biases({key: (part,) for key, part in _PARTS.items()}, bias=True),
)


def _heads(name: str) -> tuple[Head, ...]:
    classes = Head(f"{name}ForImageClassification", {"heads_on": ("patches",)}, LABELS)
    return classes, Head(f"{name}Model")


_SCALES = {"attention_scale": "layer_scale1.lambda1", "mlp_scale": "layer_scale2.lambda1"}


def _scales(block: str) -> list[Rule]:
    return [rule for path, tensor in _SCALES.items() for rule in copy(f"stack/layers/{path}", f"{block}.{tensor}")]


def _rules2(config: Any, root: str) -> list[Rule]:
    block, path = f"{root}encoder.layer.{{i}}", "stack/layers"
    tensors = {name: tensor for name, tensor in BLOCK.items() if name.startswith("attention/")}
    tensors |= {"attention_norm": "norm1", "mlp_norm": "norm2"}
    gated = config.activation == "swiglu"
    tensors |= {"mlp/out": "mlp.weights_out"} if gated else {"mlp/in": "mlp.fc1", "mlp/out": "mlp.fc2"}
    return [
        *encoder(config, root, tensors),
        *fused([f"{path}/mlp/gate", f"{path}/mlp/in"], f"{block}.mlp.weights_in", split(2, 0, True), split(2, 0)),
        *copy("mask_token", f"{root}embeddings.mask_token"),
        *_scales(block),
        *dense("head", "classifier"),
    ]


def _rules3(config: Any) -> list[Rule]:
    tensors = {f"attention/{name}": f"attention.{name}_proj" for name in "qkv"} | {"attention/out": "attention.o_proj"}
    tensors |= {"attention_norm": "norm1", "mlp_norm": "norm2", "mlp/gate": "mlp.gate_proj"}
    tensors |= {"mlp/in": "mlp.up_proj", "mlp/out": "mlp.down_proj"}
    tokens = {**TOKENS, "mask_token": "mask_token"}
    return [
        *dense("patch", "embeddings.patch_embeddings", conv(config.patch_size)),
        *(Rule((path,), f"embeddings.{tensor}", LEADING) for path, tensor in tokens.items()),
        *blocks("layer.{i}", tensors),
        *_scales("layer.{i}"),
        *named({"stack/norm": "norm"}),
    ]


def _class_and_patches(encoded: Encoded) -> jax.Array:
    return jnp.concatenate([class_token(encoded), jnp.mean(encoded.tokens, axis=1)], axis=-1)


_dinov2 = functools.partial(
    Family, outputs=functools.partial(outputs, read=_class_and_patches, pool=class_token), inputs=HIDDEN, model="dinov2"
)
_DEFAULTS = {"layer_norm_eps": 1e-6, "patch_size": 14}
DINOV2 = _dinov2(
    "dinov2",
    DINOV2_FIELDS,
    _heads("Dinov2"),
    functools.partial(_rules2, root="dinov2."),
    defaults=_DEFAULTS,
    prefix="dinov2.",
)
DINOV2_REGISTERS = _dinov2(
    "dinov2_with_registers",
    (*DINOV2_FIELDS, Field("registers", "num_register_tokens", default=4)),
    _heads("Dinov2WithRegisters"),
    functools.partial(_rules2, root="dinov2_with_registers."),
    defaults=_DEFAULTS,
    prefix="dinov2_with_registers.",
)
DINOV3 = Family(
    "dinov3_vit",
    DINOV3_FIELDS,
    (Head("DINOv3ViTModel"),),
    _rules3,
    functools.partial(outputs, pool=class_token),
    HIDDEN,
    defaults={"layer_norm_eps": 1e-5, "key_bias": False},
    model="dinov3",
)
