"""DINOv2, with and without registers, and DINOv3."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.interop.families.vit import (
    BLOCK,
    DEFAULTS,
    FRONT,
    HIDDEN,
    LEADING,
    OWN_KEYS,
    VIT,
    class_token,
    classes,
    conv,
    encoder,
    image_shape,
    outputs,
    read,
    write,
)
from ssljax.interop.family import activation, activation_back
from ssljax.interop.rules import Rule, blocks, copy, dense, fused, norm, split
from ssljax.models.family import Encoded


def _dinov2(config: Any, root: str) -> list[Rule]:
    names = {k: v for k, v in BLOCK.items() if k.startswith("attention/")}
    names |= {"attention_norm": "norm1", "mlp_norm": "norm2", "mlp/in": "mlp.fc1", "mlp/out": "mlp.fc2"}
    block, here = f"{root}encoder.layer.{{i}}", "stack/layers"
    if config.activation == "swiglu":
        names = {k: v for k, v in names.items() if not k.startswith("mlp/")} | {"mlp/out": "mlp.weights_out"}
    return [
        *encoder(config, root, names),
        *fused([f"{here}/mlp/gate", f"{here}/mlp/in"], f"{block}.mlp.weights_in", split(2, 0, True), split(2, 0)),
        *copy("mask_token", f"{root}embeddings.mask_token"),
        *copy(f"{here}/attention_scale", f"{block}.layer_scale1.lambda1"),
        *copy(f"{here}/mlp_scale", f"{block}.layer_scale2.lambda1"),
        *dense("head", "classifier"),
    ]


def _dinov3(config: Any) -> list[Rule]:
    names = {f"attention/{name}": f"attention.{name}_proj" for name in "qkv"} | {"attention/out": "attention.o_proj"}
    names |= {"attention_norm": "norm1", "mlp_norm": "norm2", "mlp/gate": "mlp.gate_proj"}
    names |= {"mlp/in": "mlp.up_proj", "mlp/out": "mlp.down_proj"}
    return [
        *dense("patch", "embeddings.patch_embeddings", conv(config.patch_size)),
        *(Rule((ours,), f"embeddings.{theirs}", LEADING) for ours, theirs in FRONT.items()),
        Rule(("mask_token",), "embeddings.mask_token", LEADING),
        *blocks("layer.{i}", names),
        *copy("stack/layers/attention_scale", "layer.{i}.layer_scale1.lambda1"),
        *copy("stack/layers/mlp_scale", "layer.{i}.layer_scale2.lambda1"),
        *norm("stack/norm", "norm"),
    ]


def _class_and_patches(encoded: Encoded) -> jax.Array:
    return jnp.concatenate([class_token(encoded), jnp.mean(encoded.tokens, axis=1)], axis=-1)


def _read_dinov2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    gated, hidden = theirs["use_swiglu_ffn"], int(theirs["hidden_size"] * theirs["mlp_ratio"])
    if not theirs.get("apply_layernorm", True):
        raise UserError("config.json: apply_layernorm: false is not supported")
    own = {"activation": "swiglu", "mlp_dim": (int(hidden * 2 / 3) + 7) // 8 * 8} if gated else {"mlp_dim": hidden}
    heads = {"heads_on": ("patches",)} if classes(theirs) else {}
    mask = {"mask_token": theirs.get("use_mask_token", True)}
    registers = {"registers": theirs["num_register_tokens"]} if "registers" in theirs["model_type"] else {}
    return {
        **read(theirs, pooled=False),
        **own,
        **heads,
        **mask,
        **registers,
        "layer_scale": theirs["layerscale_value"],
    }


def _write_dinov2(ours: Any) -> dict[str, Any]:
    gated = ours.activation == "swiglu"
    act = {} if gated else {"hidden_act": activation_back(ours.activation)}
    more = {"num_register_tokens": ours.registers} if ours.registers else {"use_mask_token": ours.mask_token}
    ratio = int(ours.hidden * (1.5 if gated else 1) / ours.width)  # theirs is whole; that of a gate is rounded up
    plain = write(dataclasses.replace(ours, activation="gelu"))
    return {**plain, **act, **more, "use_swiglu_ffn": gated, "mlp_ratio": ratio, "layerscale_value": ours.layer_scale}


def _read_dinov3(theirs: Mapping[str, Any]) -> dict[str, Any]:
    parts = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "out": "proj_bias", "mlp": "mlp_bias"}
    rope = theirs.get("rope_parameters") or {}
    return {
        "activation": activation(theirs["hidden_act"], "hidden_act", theirs["use_gated_mlp"]),
        "image_shape": image_shape(theirs),
        "bias_except": [ours for ours, name in parts.items() if not theirs[name]],
        "layer_scale": theirs["layerscale_value"],
        "registers": theirs["num_register_tokens"],
        "rope_theta": float(theirs.get("rope_theta") or rope.get("rope_theta") or 100.0),
    }


def _write_dinov3(ours: Any) -> dict[str, Any]:
    parts = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "out": "proj_bias", "mlp": "mlp_bias"}
    return {
        **{name: part not in ours.bias_except for part, name in parts.items()},
        "hidden_act": activation_back(ours.activation),
        "use_gated_mlp": "glu" in ours.activation,
        "image_size": ours.image_shape[0],
        "num_channels": ours.image_shape[2],
        "layerscale_value": ours.layer_scale,
        "num_register_tokens": ours.registers,
        "rope_theta": ours.rope_theta,
    }


DINOV2 = dataclasses.replace(
    VIT,
    model="dinov2",
    keys={k: v for k, v in OWN_KEYS.items() if k != "mlp_dim"},
    defaults={**DEFAULTS, "model_type": "dinov2", "layer_norm_eps": 1e-6, "patch_size": 14, "mlp_ratio": 4}
    | {"use_swiglu_ffn": False, "layerscale_value": 1.0},
    read=_read_dinov2,
    write=_write_dinov2,
    rules=functools.partial(_dinov2, root="dinov2."),
    architecture="Dinov2Model",
    classifier="Dinov2ForImageClassification",
    prefix="dinov2.",
    outputs=functools.partial(outputs, read=_class_and_patches, pool=class_token),
    inputs=HIDDEN,
)
DINOV2_REGISTERS = dataclasses.replace(
    DINOV2,
    defaults={**DINOV2.defaults, "model_type": "dinov2_with_registers", "num_register_tokens": 4},
    rules=functools.partial(_dinov2, root="dinov2_with_registers."),
    architecture="Dinov2WithRegistersModel",
    classifier="Dinov2WithRegistersForImageClassification",
    prefix="dinov2_with_registers.",
)
DINOV3 = dataclasses.replace(
    VIT,
    model="dinov3",
    defaults={k: v for k, v in DEFAULTS.items() if k != "qkv_bias"}
    | {"model_type": "dinov3_vit", "layer_norm_eps": 1e-5, "layerscale_value": 1.0, "num_register_tokens": 0}
    | {"query_bias": True, "key_bias": False, "value_bias": True, "proj_bias": True, "mlp_bias": True}
    | {"use_gated_mlp": False},
    read=_read_dinov3,
    write=_write_dinov3,
    rules=_dinov3,
    architecture="DINOv3ViTModel",
    prefix="",
    outputs=functools.partial(outputs, pool=class_token),
    inputs=HIDDEN,
)
