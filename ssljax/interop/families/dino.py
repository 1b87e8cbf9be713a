"""DINOv2, with and without registers, and DINOv3."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.interop.codecs import ACTIVATION, GATED_ACTIVATION, Codec
from ssljax.interop.families import vit
from ssljax.interop.family import Family, Head
from ssljax.interop.fields import SIZES, Biases, Declaration, Field, required
from ssljax.interop.rules import LEADING, Rule, blocks, copy, dense, fused, named, split
from ssljax.models.family import Encoded


def _read_mlp(act: str, gated: bool, ratio: float, width: int) -> tuple[str, int, int]:
    hidden = int(width * ratio)
    if gated:  # two thirds of it, rounded up to a multiple of 8
        return "swiglu", (int(hidden * 2 / 3) + 7) // 8 * 8, width
    return ACTIVATION.read(act), hidden, width


def _write_mlp(activation: str, hidden: int, width: int) -> tuple[str, bool, int, int]:
    gated = activation == "swiglu"
    act = "gelu" if gated else ACTIVATION.write(activation)
    return act, gated, int(hidden * (1.5 if gated else 1) / width), width


_MLP_KEYS = ("hidden_act", "use_swiglu_ffn", "mlp_ratio", "hidden_size")
DINOV2_FIELDS = (
    *SIZES[:3],
    vit.NORM_EPS,
    *vit.IMAGE,
    vit.QKV_BIAS,
    Field(("activation", "mlp_dim", "width"), _MLP_KEYS, Codec(_read_mlp, _write_mlp), ("gelu", False, 4, 768)),
    Field("layer_scale", "layerscale_value", default=1.0),
    Field("mask_token", "use_mask_token", default=True),
    required("apply_layernorm", True),
)
# An activation, or one with a gate if `use_gated_mlp`.
_GATED_OR_PLAIN = Codec(
    lambda act, gated: (GATED_ACTIVATION if gated else ACTIVATION).read(act),
    lambda activation: (
        (GATED_ACTIVATION if "glu" in activation else ACTIVATION).write(activation),
        "glu" in activation,
    ),
)
# A key, or a group of keys in newer files.
_THETA = Codec(lambda theta, rope: float(theta or (rope or {}).get("rope_theta") or 100.0), lambda theta: (theta, None))
_BIASES = {"query_bias": "q", "key_bias": "k", "value_bias": "v", "proj_bias": "out", "mlp_bias": "mlp"}
DINOV3_FIELDS = (
    *SIZES,
    vit.NORM_EPS,
    *vit.IMAGE,
    Field("activation", ("hidden_act", "use_gated_mlp"), _GATED_OR_PLAIN, ("gelu", False)),
    Field("layer_scale", "layerscale_value", default=1.0),
    Field("registers", "num_register_tokens", default=0),
    Field("rope_theta", ("rope_theta", "rope_parameters"), _THETA, (None, None)),
    Biases({key: (part,) for key, part in _BIASES.items()}, bias=True),
)
_SCALES = {"attention_scale": "layer_scale1.lambda1", "mlp_scale": "layer_scale2.lambda1"}


def _scales(block: str) -> list[Rule]:
    return [rule for path, tensor in _SCALES.items() for rule in copy(f"stack/layers/{path}", f"{block}.{tensor}")]


def _rules2(config: Any, root: str) -> list[Rule]:
    block, path = f"{root}encoder.layer.{{i}}", "stack/layers"
    tensors = {name: tensor for name, tensor in vit.BLOCK.items() if name.startswith("attention/")}
    tensors |= {"attention_norm": "norm1", "mlp_norm": "norm2"}
    gated = config.activation == "swiglu"
    tensors |= {"mlp/out": "mlp.weights_out"} if gated else {"mlp/in": "mlp.fc1", "mlp/out": "mlp.fc2"}
    return [
        *vit.encoder(config, root, tensors),
        *fused([f"{path}/mlp/gate", f"{path}/mlp/in"], f"{block}.mlp.weights_in", split(2, 0, True), split(2, 0)),
        *copy("mask_token", f"{root}embeddings.mask_token"),
        *_scales(block),
        *dense("head", "classifier"),
    ]


def _rules3(config: Any) -> list[Rule]:
    tensors = {f"attention/{name}": f"attention.{name}_proj" for name in "qkv"} | {"attention/out": "attention.o_proj"}
    tensors |= {"attention_norm": "norm1", "mlp_norm": "norm2", "mlp/gate": "mlp.gate_proj"}
    tensors |= {"mlp/in": "mlp.up_proj", "mlp/out": "mlp.down_proj"}
    tokens = {**vit.TOKENS, "mask_token": "mask_token"}
    return [
        *dense("patch", "embeddings.patch_embeddings", vit.conv(config.patch_size)),
        *(Rule((path,), f"embeddings.{tensor}", LEADING) for path, tensor in tokens.items()),
        *blocks("layer.{i}", tensors),
        *_scales("layer.{i}"),
        *named({"stack/norm": "norm"}),
    ]


def _class_and_patches(encoded: Encoded) -> jax.Array:
    return jnp.concatenate([vit.class_token(encoded), jnp.mean(encoded.tokens, axis=1)], axis=-1)


def _dinov2(kind: str, name: str, patch: int, *more: Declaration) -> Family:
    """DINOv2 with a default patch size and further fields; `name` begins the names of its classes."""
    return Family(
        kind,
        (*DINOV2_FIELDS, *more),
        (Head(f"{name}ForImageClassification", {"heads_on": ("patches",)}, vit.LABELS), Head(f"{name}Model")),
        functools.partial(_rules2, root=f"{kind}."),
        functools.partial(vit.outputs, read=_class_and_patches, pool=vit.class_token),
        vit.HIDDEN,
        defaults={"layer_norm_eps": 1e-6, "patch_size": patch},
        model="dinov2",
        prefix=f"{kind}.",
    )


DINOV2 = _dinov2("dinov2", "Dinov2", 14)
DINOV2_REGISTERS = _dinov2(
    "dinov2_with_registers", "Dinov2WithRegisters", 16, Field("registers", "num_register_tokens", default=4)
)
DINOV3 = Family(
    "dinov3_vit",
    DINOV3_FIELDS,
    (Head("DINOv3ViTModel"),),
    _rules3,
    functools.partial(vit.outputs, pool=vit.class_token),
    vit.HIDDEN,
    defaults={"layer_norm_eps": 1e-5, "key_bias": False}
    | {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    model="dinov3",
)
