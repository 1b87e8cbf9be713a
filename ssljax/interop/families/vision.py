"""ViT, DeiT, BEiT, I-JEPA's encoder, DINOv2 and 3, the audio spectrogram transformer, and ViT-MAE."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.interop.family import KEYS, Family, activation, activation_back, hidden_states, token_loss
from ssljax.interop.rules import Op, Rule, blocks, copy, dense, fused, norm, split, under
from ssljax.models.family import Encoded
from ssljax.views import patches as patching

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


def _encoder(config: Any, root: str, block: Mapping[str, str] = BLOCK, layer: str = "encoder.layer.{i}") -> list[Rule]:
    return [
        *embeddings(config, root),
        *blocks(f"{root}{layer}", block),
        *norm("stack/norm", f"{root}layernorm"),
        *dense("pooler", f"{root}pooler.dense"),
    ]


def _vit(config: Any) -> list[Rule]:
    return [*_encoder(config, "vit."), *dense("head", "classifier")]


def _deit(config: Any) -> list[Rule]:
    two = "distilled" in config.heads_on
    heads = [*dense("head", "cls_classifier" if two else "classifier")]
    return [*_encoder(config, "deit."), *heads, *dense("distilled_head", "distillation_classifier")]


def _ijepa(config: Any) -> list[Rule]:
    return [*_encoder(config, "ijepa."), *dense("head", "classifier")]


def _ast(config: Any) -> list[Rule]:
    root = "audio_spectrogram_transformer."
    return [*_encoder(config, root), *norm("head_norm", "classifier.layernorm"), *dense("head", "classifier.dense")]


def _beit(config: Any) -> list[Rule]:
    table, here = "relative_position_bias.relative_position_bias_table", "stack/layers"
    masked = config.pool == "mean" and not config.norm_after_pool
    return [
        *embeddings(config, "beit."),
        Rule(("mask_token",), "beit.embeddings.mask_token", LEADING),
        *blocks("beit.encoder.layer.{i}", BLOCK),
        *copy(f"{here}/attention_scale", "beit.encoder.layer.{i}.lambda_1"),
        *copy(f"{here}/mlp_scale", "beit.encoder.layer.{i}.lambda_2"),
        *copy("stack/relative_bias", f"beit.encoder.{table}"),
        *copy(f"{here}/attention/relative_bias", f"beit.encoder.layer.{{i}}.attention.attention.{table}"),
        *norm("stack/norm", "layernorm" if masked else "beit.layernorm"),
        *norm("pooled_norm", "beit.pooler.layernorm"),
        *dense("head", "lm_head" if masked else "classifier"),
    ]


def _dinov2(config: Any, root: str) -> list[Rule]:
    names = {k: v for k, v in BLOCK.items() if k.startswith("attention/")}
    names |= {"attention_norm": "norm1", "mlp_norm": "norm2", "mlp/in": "mlp.fc1", "mlp/out": "mlp.fc2"}
    block, here = f"{root}encoder.layer.{{i}}", "stack/layers"
    if config.activation == "swiglu":
        names = {k: v for k, v in names.items() if not k.startswith("mlp/")} | {"mlp/out": "mlp.weights_out"}
    return [
        *_encoder(config, root, names),
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


def _mae(config: Any) -> list[Rule]:
    return [
        *under("encoder", "", _encoder(config.encoder, "vit.")),
        *dense("decoder/embed", "decoder.decoder_embed"),
        Rule(("decoder/mask_token",), "decoder.mask_token", LEADING),
        Rule(("decoder/positions",), "decoder.decoder_pos_embed", LEADING),
        *blocks("decoder.decoder_layers.{i}", BLOCK, "decoder/stack/layers"),
        *norm("decoder/stack/norm", "decoder.decoder_norm"),
        *dense("decoder/head", "decoder.decoder_pred"),
    ]


def pixels(array: jax.Array) -> jax.Array:
    """[B, C, H, W] -> [B, H, W, C]."""
    return jnp.transpose(array, (0, 2, 3, 1))


def _class_token(encoded: Encoded) -> jax.Array:
    return encoded.prefix[:, 0]  # type: ignore[index]


def _pooled(encoded: Encoded) -> jax.Array:
    return encoded.pooled


def _class_and_patches(encoded: Encoded) -> jax.Array:
    return jnp.concatenate([_class_token(encoded), jnp.mean(encoded.tokens, axis=1)], axis=-1)


def outputs(
    module: Any,
    params: Any,
    inputs: Mapping[str, Any],
    theirs: Mapping[str, Any],
    read: Callable[[Encoded], jax.Array] = _class_token,
    pool: Callable[[Encoded], jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """pixel_values (or input_values), bool_masked_pos, labels -> outputs of an encoder and of the heads that it has.

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
        out["pooler_output"] = module.apply(variables, _class_token(encoded), method="pooler_output")
    elif pool is not None:
        out["pooler_output"] = pool(encoded)
    if not c.classes:
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


def autoencoder(module: Any, params: Any, inputs: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """pixel_values, noise [B, N] -> outputs of ViT-MAE; the patches of the smallest noise are kept."""
    images, noise = pixels(inputs["pixel_values"]), inputs["noise"]
    order = jnp.argsort(noise, axis=1)
    keep = order[:, : int(noise.shape[1] * (1 - theirs["mask_ratio"]))]
    restore = jnp.argsort(order, axis=1)
    mask = (restore >= keep.shape[1]).astype(jnp.float32)
    encoded, logits = module.apply({"params": params}, images, keep, states=True)
    target = found = patching.patchify(images, module.config.encoder.patch_size)
    if theirs.get("norm_pix_loss"):
        target = patching.normalize_patches(target)
    errors = jnp.mean(jnp.square(logits - target), axis=-1)
    out = {"last_hidden_state": jnp.concatenate([encoded.prefix, encoded.tokens], axis=1), "mask": mask}
    out |= {"ids_restore": restore}
    out |= {f"base.{name}": value for name, value in out.items()}
    out |= hidden_states(encoded.states, None) | {"logits": logits, "patchify": found}
    return out | {"loss": jnp.sum(errors * mask) / jnp.sum(mask)}


def image_shape(theirs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Their image as [H, W, C]."""
    size = theirs["image_size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width, theirs["num_channels"]


def _classes(theirs: Mapping[str, Any]) -> int:
    """How many classes a head has; 0 without one."""
    if "Classification" not in _architecture(theirs):
        return 0
    return len(theirs["id2label"]) if theirs.get("id2label") else theirs.get("num_labels", 2)


def _architecture(theirs: Mapping[str, Any]) -> str:
    return (theirs.get("architectures") or [""])[0]


def _read(theirs: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
    model = _architecture(theirs).endswith("Model")
    if pooled and model and theirs.get("pooler_act", "tanh") != "tanh":
        raise UserError(f"config.json: pooler_act: {theirs['pooler_act']!r} is not supported (tanh)")
    return {
        "activation": activation(theirs["hidden_act"], "hidden_act"),
        "image_shape": image_shape(theirs),
        "classes": _classes(theirs),
        "bias_except": [] if theirs["qkv_bias"] else ["q", "k", "v"],
        "heads_on": ("pooler",) if pooled and model else (),
    }


def _write(ours: Any) -> dict[str, Any]:
    height, width, channels = ours.image_shape
    return {
        "hidden_act": activation_back(ours.activation),
        "image_size": height if height == width else [height, width],
        "num_channels": channels,
        "qkv_bias": "q" not in ours.bias_except,
        **_labels(ours),
    }


def _labels(ours: Any) -> dict[str, Any]:
    names = {str(i): f"LABEL_{i}" for i in range(ours.classes)}
    return {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}} if names else {}


def _read_deit(theirs: Mapping[str, Any]) -> dict[str, Any]:
    out = _read(theirs)
    return {**out, "heads_on": ("distilled",)} if "WithTeacher" in _architecture(theirs) else out


def _read_beit(theirs: Mapping[str, Any]) -> dict[str, Any]:
    masked = "MaskedImageModeling" in _architecture(theirs)
    mean, scale = theirs["use_mean_pooling"], theirs["layer_scale_init_value"]
    if masked and not mean:
        raise UserError("config.json: use_mean_pooling: false is not supported for BeitForMaskedImageModeling")
    biased = theirs["use_relative_position_bias"] or theirs["use_shared_relative_position_bias"]
    return {
        **_read({**theirs, "qkv_bias": True}, pooled=False),
        "bias_except": ["k"],
        "pool": "mean" if mean else "cls",
        "norm_after_pool": mean and not masked,
        "positions": "learned" if theirs["use_absolute_position_embeddings"] else "none",
        "position_bias": "grid" if biased else "none",
        "layer_bias": not theirs["use_shared_relative_position_bias"],
        "layer_scale": scale if scale and scale > 0 else None,
        "mask_token": theirs["use_mask_token"],
        **({"classes": theirs["vocab_size"]} if masked else {}),
    }


def _write_beit(ours: Any) -> dict[str, Any]:
    biased = ours.position_bias == "grid"
    return {
        **{k: v for k, v in _write(ours).items() if k != "qkv_bias"},
        "use_mean_pooling": ours.pool == "mean",
        "use_absolute_position_embeddings": ours.positions == "learned",
        "use_relative_position_bias": biased and ours.layer_bias,
        "use_shared_relative_position_bias": biased and not ours.layer_bias,
        "layer_scale_init_value": ours.layer_scale or 0,
        "use_mask_token": ours.mask_token,
    }


def _read_dinov2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    gated, hidden = theirs["use_swiglu_ffn"], int(theirs["hidden_size"] * theirs["mlp_ratio"])
    if not theirs.get("apply_layernorm", True):
        raise UserError("config.json: apply_layernorm: false is not supported")
    own = {"activation": "swiglu", "mlp_dim": (int(hidden * 2 / 3) + 7) // 8 * 8} if gated else {"mlp_dim": hidden}
    heads = {"heads_on": ("patches",)} if _classes(theirs) else {}
    mask = {"mask_token": theirs.get("use_mask_token", True)}
    registers = {"registers": theirs.get("num_register_tokens", 0)}
    return {
        **_read(theirs, pooled=False),
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
    ratio = ours.hidden * (1.5 if gated else 1) / ours.width
    plain = _write(dataclasses.replace(ours, activation="gelu"))
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


def _read_ast(theirs: Mapping[str, Any]) -> dict[str, Any]:
    shape = (theirs["num_mel_bins"], theirs["max_length"], 1)
    out = _read({**theirs, "image_size": shape[:2], "num_channels": 1}, pooled=False)
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
        **_labels(ours),
    }


def _read_mae(theirs: Mapping[str, Any]) -> dict[str, Any]:
    both = _read(theirs, pooled=False)
    same = {name: theirs[key] for name, key in OWN_KEYS.items()}
    own = {"pool": "cls", "positions": "learned", **both, **same}  # a file holds its fixed positions
    names = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
    names |= {"mlp_dim": "intermediate_size"}
    decoder = {ours: theirs[f"decoder_{key}"] for ours, key in names.items()}
    shared = {name: both[name] for name in ("activation", "bias_except")} | {"norm_eps": theirs["layer_norm_eps"]}
    return {"encoder": {"size": None, **own}, "decoder": {"size": None, "learned": True, **shared, **decoder}}


def _write_mae(ours: Any) -> dict[str, Any]:
    encoder, decoder = ours.encoder, ours.decoder
    return {
        **_write(encoder),
        **{"hidden_size": encoder.width, "num_hidden_layers": encoder.depth, "num_attention_heads": encoder.heads},
        **{"intermediate_size": encoder.hidden, "layer_norm_eps": encoder.norm_eps, "patch_size": encoder.patch_size},
        **{"decoder_hidden_size": decoder.width, "decoder_num_hidden_layers": decoder.depth},
        **{"decoder_num_attention_heads": decoder.heads, "decoder_intermediate_size": decoder.hidden},
    }


DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "num_channels": 3, "patch_size": 16}
DEFAULTS |= {"qkv_bias": True}
VIT = Family(
    model="vit",
    keys=OWN_KEYS,
    defaults={**DEFAULTS, "model_type": "vit"},
    read=_read,
    write=_write,
    rules=_vit,
    architecture="ViTModel",
    prefix="vit.",
    outputs=outputs,
)
DEIT = dataclasses.replace(
    VIT,
    model="deit",
    defaults={**DEFAULTS, "model_type": "deit"},
    read=_read_deit,
    rules=_deit,
    architecture="DeiTModel",
    prefix="deit.",
)
IJEPA = dataclasses.replace(
    VIT,
    model="ijepa",
    defaults={**DEFAULTS, "model_type": "ijepa"},
    read=functools.partial(_read, pooled=False),
    rules=_ijepa,
    architecture="IJepaModel",
    prefix="ijepa.",
    outputs=functools.partial(outputs, read=_pooled),
    ignored=(r"pooler\.",),
)
BEIT = dataclasses.replace(
    VIT,
    model="beit",
    defaults={k: v for k, v in DEFAULTS.items() if k != "qkv_bias"}
    | {"model_type": "beit", "use_mean_pooling": True, "use_absolute_position_embeddings": False}
    | {"use_relative_position_bias": False, "use_shared_relative_position_bias": False}
    | {"layer_scale_init_value": 0.1, "use_mask_token": False, "vocab_size": 8192},
    read=_read_beit,
    write=_write_beit,
    rules=_beit,
    architecture="BeitModel",
    prefix="beit.",
    outputs=functools.partial(outputs, read=_pooled, pool=_pooled),
    ignored=(r"relative_position_index$",),
)
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
    prefix="dinov2.",
    outputs=functools.partial(outputs, read=_class_and_patches, pool=_class_token),
)
DINOV2_REGISTERS = dataclasses.replace(
    DINOV2,
    defaults={**DINOV2.defaults, "model_type": "dinov2_with_registers", "num_register_tokens": 4},
    rules=functools.partial(_dinov2, root="dinov2_with_registers."),
    architecture="Dinov2WithRegistersModel",
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
    outputs=functools.partial(outputs, pool=_class_token),
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
    prefix="audio_spectrogram_transformer.",
    outputs=functools.partial(outputs, read=_pooled, pool=_pooled),
)
MAE = dataclasses.replace(
    VIT,
    model="ssljax.models.mae:AutoencoderConfig",
    keys={},
    defaults={**DEFAULTS, "model_type": "vit_mae", "mask_ratio": 0.75, "norm_pix_loss": False}
    | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    | {"decoder_hidden_size": 512, "decoder_num_hidden_layers": 8, "decoder_num_attention_heads": 16}
    | {"decoder_intermediate_size": 2048},
    read=_read_mae,
    write=_write_mae,
    rules=_mae,
    architecture="ViTMAEForPreTraining",
    prefix="vit.",
    outputs=autoencoder,
    renames=((r"decoder_encoder\.layer\.", "decoder_layers."),),
)
