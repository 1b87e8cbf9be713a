"""ViT, DeiT, I-JEPA's encoder and the audio spectrogram transformer; what all encoders of images share."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.interop.family import KEYS, Family, activation, activation_back, headless, hidden_states, token_loss
from ssljax.interop.inputs import Inputs
from ssljax.interop.rules import Op, Rule, blocks, dense, norm
from ssljax.models.family import Encoded

OWN_KEYS = {name: KEYS[name] for name in ("width", "depth", "heads", "mlp_dim")}
OWN_KEYS |= {"norm_eps": "layer_norm_eps", "patch_size": "patch_size"}
LEADING = Op(lambda t: (t[0],), lambda parts: parts[0][None])  # [1, ...] there
BLOCK = {
    "attention/q": "attention.attention.query",
    "attention/k": "attention.attention.key",
    "attention/v": "attention.attention.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
    "mlp/in": "intermediate.dense",
    "mlp/out": "output.dense",
}
FRONT = {"class_token": "cls_token", "distillation_token": "distillation_token", "registers": "register_tokens"}


def conv(patch: int) -> Op:
    """The kernel of the patches; theirs is [out, channels, rows, columns]."""
    return Op(
        lambda t: (t.transpose(2, 3, 1, 0).reshape(-1, t.shape[0]),),
        lambda parts: parts[0].reshape(patch, patch, -1, parts[0].shape[-1]).transpose(3, 2, 0, 1),
    )


def embeddings(config: Any, root: str, projection: str = "patch_embeddings.projection") -> list[Rule]:
    return [
        *dense("patch", f"{root}embeddings.{projection}", conv(config.patch_size)),
        *(Rule((ours,), f"{root}embeddings.{theirs}", LEADING) for ours, theirs in FRONT.items()),
        Rule(("positions",), f"{root}embeddings.position_embeddings", LEADING),
    ]


def encoder(config: Any, root: str, block: Mapping[str, str] = BLOCK, layer: str = "encoder.layer.{i}") -> list[Rule]:
    return [
        *embeddings(config, root),
        *blocks(f"{root}{layer}", block),
        *norm("stack/norm", f"{root}layernorm"),
        *dense("pooler", f"{root}pooler.dense"),
    ]


def _vit(config: Any) -> list[Rule]:
    return [*encoder(config, "vit."), *dense("head", "classifier")]


def _deit(config: Any) -> list[Rule]:
    two = "distilled" in config.heads_on
    heads = [*dense("head", "cls_classifier" if two else "classifier")]
    return [*encoder(config, "deit."), *heads, *dense("distilled_head", "distillation_classifier")]


def _ijepa(config: Any) -> list[Rule]:
    return [*encoder(config, "ijepa."), *dense("head", "classifier")]


def _ast(config: Any) -> list[Rule]:
    root = "audio_spectrogram_transformer."
    return [*encoder(config, root), *norm("head_norm", "classifier.layernorm"), *dense("head", "classifier.dense")]


def pixels(array: jax.Array) -> jax.Array:
    """[B, C, H, W] -> [B, H, W, C]."""
    return jnp.transpose(array, (0, 2, 3, 1))


def class_token(encoded: Encoded) -> jax.Array:
    return encoded.prefix[:, 0]  # type: ignore[index]


def pooled(encoded: Encoded) -> jax.Array:
    return encoded.pooled


IMAGES = Inputs({"pixel_values": "BCHW"}, {"labels": "B"})
HIDDEN = IMAGES._replace(takes={"bool_masked_pos": "BN", "labels": "B"})


def outputs(
    module: Any,
    params: Any,
    inputs: Mapping[str, Any],
    theirs: Mapping[str, Any],
    read: Callable[[Encoded], jax.Array] = class_token,
    pool: Callable[[Encoded], jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """IMAGES, or those of sounds, or HIDDEN -> outputs of an encoder and of the heads that it has.

    `read` says what the head of classes reads, `pool` what is their pooler_output.
    """
    c, variables = module.config, {"params": params}
    x = inputs["input_values"] if "input_values" in inputs else pixels(inputs["pixel_values"])
    hidden = inputs.get("bool_masked_pos")
    encoded = module.apply(variables, x, patch_mask=None if hidden is None else hidden.astype(bool), states=True)
    tokens = encoded.tokens
    if encoded.prefix is not None:
        tokens = jnp.concatenate([encoded.prefix, tokens], axis=1)
    out = {"last_hidden_state": tokens, "base.last_hidden_state": tokens, **hidden_states(encoded.states, None)}
    if "pooler" in c.heads_on:
        out["pooler_output"] = module.apply(variables, class_token(encoded), method="pooler_output")
    elif pool is not None:
        out["pooler_output"] = pool(encoded)
    if not c.classes:
        headless(inputs, "labels")
        return out
    if hidden is not None and c.pool == "mean":  # BEiT names the visual tokens of hidden patches
        out["base.last_hidden_state"] = encoded.states[-1]
        logits = out["logits"] = module.apply(variables, encoded.tokens, method="logits")
        if "labels" in inputs:
            out["loss"] = token_loss(logits[jnp.nonzero(hidden, size=len(inputs["labels"]))], inputs["labels"])
        return out
    out["logits"] = module.apply(variables, read(encoded), method="logits")
    if "distilled" in c.heads_on:
        assert encoded.prefix is not None
        out["cls_logits"] = out["logits"]
        out["distillation_logits"] = module.apply(variables, encoded.prefix[:, 1], method="distilled_logits")
        out["logits"] = (out["cls_logits"] + out["distillation_logits"]) / 2
    if "labels" in inputs:
        out["loss"] = token_loss(out["logits"], inputs["labels"])
    return out


def image_shape(theirs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Their image as [H, W, C]."""
    size = theirs["image_size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width, theirs["num_channels"]


def classes(theirs: Mapping[str, Any]) -> int:
    """How many classes a head has; 0 without one."""
    if "Classification" not in architecture(theirs):
        return 0
    return len(theirs["id2label"]) if theirs.get("id2label") else theirs.get("num_labels", 2)


def architecture(theirs: Mapping[str, Any]) -> str:
    return (theirs.get("architectures") or [""])[0]


def read(theirs: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
    model = architecture(theirs).endswith("Model")
    if pooled and model and theirs.get("pooler_act", "tanh") != "tanh":
        raise UserError(f"config.json: pooler_act: {theirs['pooler_act']!r} is not supported (tanh)")
    return {
        "activation": activation(theirs["hidden_act"], "hidden_act"),
        "image_shape": image_shape(theirs),
        "classes": classes(theirs),
        "bias_except": [] if theirs["qkv_bias"] else ["q", "k", "v"],
        "heads_on": ("pooler",) if pooled and model else (),
    }


def write(ours: Any) -> dict[str, Any]:
    height, width, channels = ours.image_shape
    return {
        "hidden_act": activation_back(ours.activation),
        "image_size": height if height == width else [height, width],
        "num_channels": channels,
        "qkv_bias": "q" not in ours.bias_except,
        **labels(ours),
    }


def labels(ours: Any) -> dict[str, Any]:
    names = {str(i): f"LABEL_{i}" for i in range(ours.classes)}
    return {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}} if names else {}


def _read_deit(theirs: Mapping[str, Any]) -> dict[str, Any]:
    out = read(theirs)
    return {**out, "heads_on": ("distilled",)} if "WithTeacher" in architecture(theirs) else out


def _write_deit(ours: Any) -> dict[str, Any]:
    two = {"architectures": ["DeiTForImageClassificationWithTeacher"]} if "distilled" in ours.heads_on else {}
    return {**write(ours), **two}


def _read_ast(theirs: Mapping[str, Any]) -> dict[str, Any]:
    shape = (theirs["num_mel_bins"], theirs["max_length"], 1)
    out = read({**theirs, "image_size": shape[:2], "num_channels": 1}, pooled=False)
    heads = {"heads_on": ("norm",)} if out["classes"] else {}
    return {**out, **heads, "image_shape": shape, "strides": [theirs["frequency_stride"], theirs["time_stride"]]}


def _write_ast(ours: Any) -> dict[str, Any]:
    return {
        "hidden_act": activation_back(ours.activation),
        "num_mel_bins": ours.image_shape[0],
        "max_length": ours.image_shape[1],
        "frequency_stride": ours.strides[0],
        "time_stride": ours.strides[1],
        "qkv_bias": "q" not in ours.bias_except,
        **labels(ours),
    }


DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "num_channels": 3, "patch_size": 16}
DEFAULTS |= {"qkv_bias": True}
VIT = Family(
    model="vit",
    keys=OWN_KEYS,
    defaults={**DEFAULTS, "model_type": "vit"},
    read=read,
    write=write,
    rules=_vit,
    architecture="ViTModel",
    classifier="ViTForImageClassification",
    prefix="vit.",
    outputs=outputs,
    inputs=IMAGES,
)
DEIT = dataclasses.replace(
    VIT,
    model="deit",
    defaults={**DEFAULTS, "model_type": "deit"},
    read=_read_deit,
    write=_write_deit,
    rules=_deit,
    architecture="DeiTModel",
    classifier="DeiTForImageClassification",
    prefix="deit.",
)
IJEPA = dataclasses.replace(
    VIT,
    model="ijepa",
    defaults={**DEFAULTS, "model_type": "ijepa"},
    read=functools.partial(read, pooled=False),
    rules=_ijepa,
    architecture="IJepaModel",
    classifier="IJepaForImageClassification",
    prefix="ijepa.",
    outputs=functools.partial(outputs, read=pooled),
    ignored=(r"pooler\.",),
)
AST = dataclasses.replace(
    VIT,
    model="ast",
    defaults={k: v for k, v in DEFAULTS.items() if k not in ("image_size", "num_channels")}
    | {"model_type": "audio-spectrogram-transformer", "frequency_stride": 10, "time_stride": 10}
    | {"max_length": 1024, "num_mel_bins": 128},
    read=_read_ast,
    write=_write_ast,
    rules=_ast,
    architecture="ASTModel",
    classifier="ASTForAudioClassification",
    prefix="audio_spectrogram_transformer.",
    outputs=functools.partial(outputs, read=pooled, pool=pooled),
    inputs=Inputs({"input_values": "BTF"}, {"labels": "B"}),
)
