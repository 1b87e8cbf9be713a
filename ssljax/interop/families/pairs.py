"""CLIP, SigLIP and LLaVA: an image tower and a text tower, or a decoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import models
from ssljax.base.errors import UserError
from ssljax.interop.families import llama
from ssljax.interop.families.vit import conv, image_shape, pixels
from ssljax.interop.family import KEYS, Family, activation, activation_back, hidden_states, token_loss
from ssljax.interop.inputs import Inputs
from ssljax.interop.rules import Op, Rule, blocks, copy, dense, norm, split, table, under
from ssljax.layers.heads import normalize
from ssljax.layers.masks import Keys
from ssljax.models.llava import LLaVA

BLOCK = {f"attention/{name}": f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")}
BLOCK |= {"attention_norm": "layer_norm1", "mlp_norm": "layer_norm2", "mlp/in": "mlp.fc1", "mlp/out": "mlp.fc2"}
VECTOR = Op(lambda t: (t[None],), lambda parts: parts[0][0])  # [D] there
SCALAR = Op(lambda t: (t.reshape(()),), lambda parts: parts[0].reshape(1))  # [1] there
TOWER = {name: KEYS[name] for name in ("width", "depth", "heads", "mlp_dim")} | {"norm_eps": "layer_norm_eps"}
IMAGE_DEFAULTS = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"image_size": 224, "num_channels": 3, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
}
TEXT_DEFAULTS = {
    **{"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8},
    **{"max_position_embeddings": 77, "vocab_size": 49_408, "eos_token_id": 49_407},
    **{"layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
}


def _image_tower(config: Any) -> list[Rule]:
    head = "head.attention.in_proj_"
    parts = tuple(f"attention_pool/attention/{name}" for name in "qkv")
    return [
        *dense("patch", "embeddings.patch_embedding", conv(config.patch_size)),
        Rule(("class_token",), "embeddings.class_embedding", VECTOR),
        *copy("positions", "embeddings.position_embedding.weight"),
        *norm("embed_norm", "pre_layrnorm"),
        *blocks("encoder.layers.{i}", BLOCK),
        *norm("stack/norm", "post_layernorm"),
        Rule(("attention_pool/query",), "head.probe", Op(lambda t: (t[0],), lambda parts: parts[0][None])),
        Rule(tuple(f"{name}/kernel" for name in parts), f"{head}weight", split(3, 0, True)),
        Rule(tuple(f"{name}/bias" for name in parts), f"{head}bias", split(3, 0)),
        *dense("attention_pool/attention/out", "head.attention.out_proj"),
        *norm("attention_pool/norm", "head.layernorm"),
        *dense("attention_pool/mlp/in", "head.mlp.fc1"),
        *dense("attention_pool/mlp/out", "head.mlp.fc2"),
    ]


def _text_tower() -> list[Rule]:
    return [
        *table("embed", "embeddings.token_embedding"),
        *table("position_embed", "embeddings.position_embedding"),
        *blocks("encoder.layers.{i}", BLOCK),
        *norm("stack/norm", "final_layer_norm"),
    ]


def _towers(config: Any) -> list[Rule]:
    return [
        *under("image_tower", "vision_model.", _image_tower(config.image)),
        *under("text_tower", "text_model.", _text_tower()),
    ]


def _clip(config: Any) -> list[Rule]:
    return [
        *_towers(config),
        *dense("image_projection", "visual_projection"),
        *dense("text_projection", "text_projection"),
        *copy("log_scale", "logit_scale"),
    ]


def _siglip(config: Any) -> list[Rule]:
    ends = [Rule(("log_scale",), "logit_scale", SCALAR), Rule(("logit_bias",), "logit_bias", SCALAR)]
    return [*_towers(config), *dense("text_projection", "text_model.head"), *ends]


def _llava(config: Any) -> list[Rule]:
    return [
        *under("vision", "vision_tower.", _image_tower(config.image)),
        *dense("project_in", "multi_modal_projector.linear_1"),
        *dense("project_out", "multi_modal_projector.linear_2"),
        *under("language", "language_model.", _decoder_of(config.text).rules(config.text)),
    ]


PAIRS = Inputs({"input_ids": "BT", "pixel_values": "ICHW"}, {"attention_mask": "BT"})


def _towers_out(module: Any, variables: Any, inputs: Mapping[str, Any], pooled: Any) -> dict[str, jax.Array]:
    """Outputs of both towers by name; `pooled` makes the text's vector of its hidden states."""
    images, tokens = pixels(inputs["pixel_values"]), inputs["input_ids"]
    valid = inputs.get("attention_mask")
    image = module.apply(variables, images, states=True, method="encode_image")
    mask = None if valid is None else Keys(valid)
    text = module.apply(variables, tokens, mask, states=True, method="encode_text")
    image_vector = module.apply(variables, image.pooled, method="project_image")
    text_vector = module.apply(variables, pooled(text.tokens), method="project_text")
    causal = module.config.text.attention == "causal"  # CLIP: what the last block of the image tower makes, no norm
    last = image.states[-1] if causal else image.tokens
    images_out = {"last_hidden_state": last, "pooler_output": image_vector, **hidden_states(image.states, None)}
    texts_out = {"last_hidden_state": text.tokens, "pooler_output": text_vector, **hidden_states(text.states, None)}
    return {
        "image_embeds": normalize(image_vector, -1),
        "text_embeds": normalize(text_vector, -1),
        **{f"vision_model_output.{name}": value for name, value in images_out.items()},
        **{f"text_model_output.{name}": value for name, value in texts_out.items()},
    }


def clip(module: Any, params: Any, inputs: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """PAIRS -> embeddings, similarities and, if there are as many images as texts, the loss of pairs."""
    tokens, variables = inputs["input_ids"], {"params": params}
    end = theirs.get("text_config", {}).get("eos_token_id", TEXT_DEFAULTS["eos_token_id"])
    # Early configs name 2 as the end of text; the last token was then that of the largest id.
    here = jnp.argmax(tokens if end == 2 else tokens == end, axis=1)

    def pooled(states: jax.Array) -> jax.Array:
        return jnp.take_along_axis(states, here[:, None, None], axis=1)[:, 0]

    out = _towers_out(module, variables, inputs, pooled)
    scores = module.apply(variables, method="scale") * out["text_embeds"] @ out["image_embeds"].T
    out |= {"logits_per_text": scores, "logits_per_image": scores.T}
    if len(scores) != len(scores.T):
        return out
    pairs = jnp.arange(len(scores))
    return out | {"loss": (token_loss(scores, pairs) + token_loss(scores.T, pairs)) / 2}


def siglip(module: Any, params: Any, inputs: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """PAIRS -> embeddings, scores and, if there are as many images as texts, the sigmoid loss of all pairs."""
    variables = {"params": params}
    out = _towers_out(module, variables, inputs, lambda states: states[:, -1])
    scores = module.apply(variables, method="scale") * out["text_embeds"] @ out["image_embeds"].T
    scores = scores + params["logit_bias"]
    out |= {"logits_per_text": scores, "logits_per_image": scores.T}
    if len(scores) != len(scores.T):
        return out
    signs = 2 * jnp.eye(len(scores)) - 1
    return out | {"loss": -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * scores), axis=1))}


def llava(module: Any, params: Any, inputs: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """LLAVA's inputs -> logits, hidden states and loss of the decoder."""
    variables, images, valid = {"params": params}, inputs.get("pixel_values"), inputs.get("attention_mask")
    images = None if images is None else pixels(images)
    mask = None if valid is None else Keys(valid)
    encoded = module.apply(variables, inputs["input_ids"], images, mask=mask, states=True)
    logits = module.apply(variables, encoded.tokens, method="logits")
    out = {"logits": logits, **hidden_states(encoded.states, encoded.tokens)}
    if images is not None:
        patches = module.apply(variables, images, method="patches")
        out["image_hidden_states"] = patches.reshape(-1, patches.shape[-1])
    if "labels" in inputs:
        labels = inputs["labels"][:, 1:]
        seen = labels if valid is None else jnp.where(valid[:, 1:] == 1, labels, -100)
        out["loss"] = token_loss(logits[:, :-1], seen)
    return out


def _a_token_for_each_patch(ours: Any, inputs: Mapping[str, np.ndarray]) -> None:
    if "pixel_values" in inputs:
        tokens = np.count_nonzero(inputs["input_ids"] == ours.image_token)
        images, _, *shape = inputs["pixel_values"].shape
        patches = images * LLaVA(ours, parent=None).patch_count((*shape,))
        if tokens != patches:
            raise UserError(
                f"input_ids: got {tokens} image tokens (id {ours.image_token}), but the images have {patches} patches"
            )


def read_image(theirs: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Our keys of an image tower."""
    full = {**IMAGE_DEFAULTS, **theirs}
    same = {ours: full[name] for ours, name in TOWER.items()} | {"patch_size": full["patch_size"]}
    act = activation(full["hidden_act"], "vision_config.hidden_act")
    return {"preset": None, **same, "activation": act, "image_shape": image_shape(full), **own}


def _read_text(theirs: Mapping[str, Any], defaults: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    full = {**defaults, **theirs}
    same = {ours: full[name] for ours, name in TOWER.items()}
    same |= {"vocab_size": full["vocab_size"], "max_len": full["max_position_embeddings"]}
    act = activation(full["hidden_act"], "text_config.hidden_act")
    return {"preset": None, **same, "activation": act, **own}


def write_image(ours: Any) -> dict[str, Any]:
    """Their vision_config."""
    height, _, channels = ours.image_shape
    sizes = {"patch_size": ours.patch_size, "image_size": height, "num_channels": channels}
    return {**_write_tower(ours), **sizes}


def _write_tower(ours: Any) -> dict[str, Any]:
    same = {"mlp_dim": "hidden"}
    return {
        **{theirs: getattr(ours, same.get(name, name)) for name, theirs in TOWER.items()},
        "hidden_act": activation_back(ours.activation),
    }


def _write_text(ours: Any) -> dict[str, Any]:
    return {**_write_tower(ours), "vocab_size": ours.vocab_size, "max_position_embeddings": ours.max_len}


_CLIP_TOWER = {"embedding_norm": True, "patch_bias": False}


def _read_clip(theirs: Mapping[str, Any]) -> dict[str, Any]:
    image = read_image(theirs["vision_config"], **_CLIP_TOWER)
    text = _read_text(theirs["text_config"], TEXT_DEFAULTS)
    return {"image": image, "text": text, "embed_dim": theirs["projection_dim"]}


def _write_clip(ours: Any) -> dict[str, Any]:
    image = {**write_image(ours.image), "model_type": "clip_vision_model", "projection_dim": ours.embed_dim}
    text = {**_write_text(ours.text), "model_type": "clip_text_model", "projection_dim": ours.embed_dim}
    text["eos_token_id"] = 2  # there: a text ends at its largest id
    return {"projection_dim": ours.embed_dim, "vision_config": image, "text_config": text}


SIGLIP_TEXT = {**TEXT_DEFAULTS, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
SIGLIP_TEXT |= {"vocab_size": 32_000, "max_position_embeddings": 64}
SIGLIP_BOTH = {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}


def _siglip_tower(theirs: Mapping[str, Any]) -> dict[str, Any]:
    pool = "map" if theirs.get("vision_use_head", True) else "mean"
    full = {"patch_size": 16, **SIGLIP_BOTH, **theirs}
    return read_image(full, pool=pool, embedding_norm=False, patch_bias=True)


def _read_siglip(theirs: Mapping[str, Any]) -> dict[str, Any]:
    images, texts = theirs["vision_config"], theirs["text_config"]
    if not images.get("vision_use_head", True):
        raise UserError("config.json: vision_config.vision_use_head: false is not supported")
    image = _siglip_tower(images)
    text = _read_text(texts, {**SIGLIP_TEXT, **SIGLIP_BOTH}, attention="full")
    return {"image": image, "text": text}


def _write_siglip(ours: Any) -> dict[str, Any]:
    image = {**write_image(ours.image), "model_type": "siglip_vision_model"}
    text = {**_write_text(ours.text), "model_type": "siglip_text_model", "projection_size": ours.image.width}
    return {"vision_config": image, "text_config": text}


DECODERS = {
    "llama": llama.LLAMA,
    "mistral": llama.MISTRAL,
    "qwen2": llama.QWEN2,
    "qwen3": llama.QWEN3,
    "gemma": llama.GEMMA,
    "gemma2": llama.GEMMA2,
}
# What a config leaves out of a decoder: vocabulary, width, width inside, layers and heads.
_SIZES = {
    "llama": (32_000, 4096, 11_008, 32, 32),
    "mistral": (32_000, 4096, 14_336, 32, 32),
    "qwen2": (151_936, 4096, 22_016, 32, 32),
    "qwen3": (151_936, 4096, 22_016, 32, 32),
    "gemma": (256_000, 3072, 24_576, 28, 16),
    "gemma2": (256_000, 2304, 9216, 26, 8),
}
_SIZED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _decoder_of(ours: Any) -> Family:
    """The family of a decoder's configuration, the nearest above it."""
    classes = {models.REGISTRY.get(family.model): family for family in DECODERS.values()}
    return next(classes[cls] for cls in type(ours).__mro__ if cls in classes)


def _read_llava(theirs: Mapping[str, Any]) -> dict[str, Any]:
    images, layers = theirs["vision_config"], theirs["vision_feature_layer"]
    tower, chosen = images.get("model_type", "clip_vision_model"), theirs["vision_feature_select_strategy"]
    if tower not in ("clip_vision_model", "siglip_vision_model"):
        raise UserError(f"config.json: vision_config.model_type: {tower!r} is not supported (those of CLIP and SigLIP)")
    allowed = ["full"] if tower == "siglip_vision_model" else ["default", "full"]  # SigLIP has no class token to drop
    if chosen not in allowed:
        known = f"{' and '.join(map(repr, allowed))} of {tower}"
        raise UserError(f"config.json: vision_feature_select_strategy: {chosen!r} is not supported ({known})")
    text = {k: v for k, v in theirs["text_config"].items() if v is not None}
    kind, token = text.get("model_type", "llama"), theirs.get("image_token_index")
    if kind not in DECODERS:
        raise UserError(f"config.json: text_config.model_type: {kind!r} is not supported ({', '.join(DECODERS)})")
    return {
        "image": read_image(images, **_CLIP_TOWER) if tower == "clip_vision_model" else _siglip_tower(images),
        "text": DECODERS[kind].config({**dict(zip(_SIZED, _SIZES[kind])), **text}, "config.json: text_config"),
        "feature_layer": layers,
        "feature_tokens": "all" if chosen == "full" and tower == "clip_vision_model" else "patches",
        "projector_bias": theirs["multimodal_projector_bias"],
        "image_token": theirs.get("image_token_id", 32_000) if token is None else token,
        "activation": activation(theirs["projector_hidden_act"], "projector_hidden_act"),
    }


def _write_llava(ours: Any) -> dict[str, Any]:
    tower = {"model_type": "clip_vision_model"}
    if not ours.image.embedding_norm:
        tower = {"model_type": "siglip_vision_model", "vision_use_head": ours.image.pool == "map"}
    return {
        "vision_config": {**write_image(ours.image), **tower},
        "text_config": _decoder_of(ours.text).config_back(ours.text),
        "vision_feature_layer": ours.feature_layer,
        "vision_feature_select_strategy": "default" if ours.image.prefix and ours.feature_tokens != "all" else "full",
        "multimodal_projector_bias": ours.projector_bias,
        "image_token_index": ours.image_token,
        "projector_hidden_act": activation_back(ours.activation),
    }


CLIP = Family(
    model="clip",
    keys={},
    defaults={"model_type": "clip", "projection_dim": 512},
    read=_read_clip,
    write=_write_clip,
    rules=_clip,
    architecture="CLIPModel",
    prefix="",
    outputs=clip,
    inputs=PAIRS,
    ignored=(r"position_ids$",),
)
SIGLIP = dataclasses.replace(
    CLIP,
    model="siglip",
    defaults={"model_type": "siglip"},
    read=_read_siglip,
    write=_write_siglip,
    rules=_siglip,
    architecture="SiglipModel",
    outputs=siglip,
)
LLAVA = dataclasses.replace(
    CLIP,
    model="llava",
    defaults={"model_type": "llava", "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    | {"multimodal_projector_bias": True, "projector_hidden_act": "gelu"},
    read=_read_llava,
    write=_write_llava,
    rules=_llava,
    architecture="LlavaForConditionalGeneration",
    outputs=llava,
    inputs=Inputs({"input_ids": "BT"}, {"pixel_values": "ICHW", "attention_mask": "BT", "labels": "BT"}),
    fit=_a_token_for_each_patch,
    renames=(
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        (r"^vision_tower\.vision_model\.", "vision_tower."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
    ),
)
