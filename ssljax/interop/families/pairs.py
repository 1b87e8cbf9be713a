"""CLIP, SigLIP and LLaVA: an image tower and a text tower, or a decoder."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import models
from ssljax.base.errors import UserError
from ssljax.interop.codecs import ACTIVATION, Codec, names
from ssljax.interop.families import llama
from ssljax.interop.families.vit import IMAGE, conv, pixels
from ssljax.interop.family import Family, Head
from ssljax.interop.fields import Declaration, Field, Group, HFConfig, constant, counts, group, required, within
from ssljax.interop.inputs import Inputs
from ssljax.interop.outputs import InputArrays, hidden_states, token_loss
from ssljax.interop.rules import LEADING, Op, Rule, blocks, copy, dense, named, readout, split, under
from ssljax.layers.heads import normalize
from ssljax.layers.masks import Causal, Full, Keys, Mask
from ssljax.models.family import Encoded
from ssljax.models.llava import LLaVA

_END = 49_407  # id of the end of a text in CLIP
_ENDS_AT_LARGEST = {"eos_token_id": 2}  # as in early files: a text ends at the token with the largest id


def _tower(width: int, mlp_dim: int, heads: int, norm_eps: float, activation: str) -> tuple[Field, ...]:
    """The fields of a tower with 12 layers, with their defaults."""
    return (
        *counts(width=("hidden_size", width), depth=("num_hidden_layers", 12), heads=("num_attention_heads", heads)),
        *counts(mlp_dim=("intermediate_size", mlp_dim)),
        Field("norm_eps", "layer_norm_eps", default=norm_eps),
        Field("activation", "hidden_act", ACTIVATION, activation),
    )


_CLIP, _SIGLIP = (1e-5, "quick_gelu"), (1e-6, "gelu_pytorch_tanh")
_CLIP_IMAGE = (
    *_tower(768, 3072, 12, *_CLIP),
    *IMAGE,
    *counts(patch_size=("patch_size", 32)),
    constant("embedding_norm", True),
    constant("patch_bias", False),
)
_SIGLIP_IMAGE = (
    *_tower(768, 3072, 12, *_SIGLIP),
    *IMAGE,
    constant("embedding_norm", False),
    constant("patch_bias", True),
)
_CLIP_TEXT = (
    *_tower(512, 2048, 8, *_CLIP),
    *counts(vocab_size=("vocab_size", 49_408), max_len=("max_position_embeddings", 77)),
)
_SIGLIP_TEXT = (
    *_tower(768, 3072, 12, *_SIGLIP),
    *counts(vocab_size=("vocab_size", 32_000), max_len=("max_position_embeddings", 64)),
    constant("attention", "full"),
)


@dataclasses.dataclass(frozen=True)
class _Written(Declaration):
    """Keys of `hf_config` that are written but never read, since others imply them: config -> their values."""

    values: Callable[[Any], dict[str, Any]]

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        return {}

    def write(self, config: Any) -> dict[str, Any]:
        return self.values(config)


def _clip_groups(config: Any) -> dict[str, Any]:
    width = {"projection_dim": config.embed_dim}
    text = {"model_type": "clip_text_model", **_ENDS_AT_LARGEST}
    return {"vision_config": {"model_type": "clip_vision_model", **width}, "text_config": {**text, **width}}


def _siglip_groups(config: Any) -> dict[str, Any]:
    text = {"model_type": "siglip_text_model", "projection_size": config.image.width}
    return {"vision_config": {"model_type": "siglip_vision_model"}, "text_config": text}


def _clip_of_early_files(hf_config: HFConfig) -> HFConfig:
    """Groups `text_config_dict` and `vision_config_dict` replace the others, as in `transformers`."""
    early = {key: hf_config.get(f"{key}_dict") for key in ("text_config", "vision_config")}
    return {**hf_config, **{key: value for key, value in early.items() if value is not None}}


CLIP_FIELDS = (
    Group("image", "vision_config", _CLIP_IMAGE),
    Group("text", "text_config", _CLIP_TEXT),
    Field("embed_dim", "projection_dim", default=512),
    _Written(_clip_groups),
)
SIGLIP_FIELDS = (
    Group("image", "vision_config", (*_SIGLIP_IMAGE, constant("pool", "map"), required("vision_use_head", True))),
    Group("text", "text_config", _SIGLIP_TEXT),
    _Written(_siglip_groups),
)
# The decoders of LLaVA.
_DECODERS = (llama.LLAMA, llama.MISTRAL, llama.QWEN2, llama.QWEN3, llama.GEMMA, llama.GEMMA2)
DECODERS = {family.model_type: family for family in _DECODERS}


def _decoder_of(config: Any) -> Family:
    """Returns the family of a decoder, found by the class of its configuration or the nearest base class."""
    classes = {models.REGISTRY.get(family.model): family for family in _DECODERS}
    return next(classes[cls] for cls in type(config).__mro__ if cls in classes)


class _Decoder(Declaration):
    """`text`, a decoder of the family that `text_config.model_type` names."""

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        text = group(hf_config, "text_config")
        kind = text.get("model_type") or "llama"
        if kind not in DECODERS:
            raise UserError(f"text_config.model_type: {kind!r} is not supported ({', '.join(DECODERS)})")
        with within("text_config"):
            return {"text": DECODERS[kind].read(text)}

    def write(self, config: Any) -> dict[str, Any]:
        return {"text_config": _decoder_of(config.text).write_config(config.text)}


_POOL = Field("pool", "vision_use_head", names({True: "map", False: "mean"}), True)
_TOWERS = {
    "clip_vision_model": Group("image", "vision_config", _CLIP_IMAGE),
    "siglip_vision_model": Group("image", "vision_config", (*_SIGLIP_IMAGE, _POOL)),
}


# The tower of a LLaVA without `vision_config`.
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_LARGE |= {"patch_size": 14, "image_size": 336}


class _Tower(Declaration):
    """`image`, the tower of CLIP or SigLIP, and `feature_tokens`, the outputs of it that the decoder reads."""

    defaults = {"vision_feature_select_strategy": "default", "vision_config": None}  # noqa: RUF012 (never mutated)

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        kind = group(hf_config, "vision_config").get("model_type") or "clip_vision_model"
        if kind not in _TOWERS:
            raise UserError(f"vision_config.model_type: {kind!r} is not supported ({', '.join(_TOWERS)})")
        chosen, clip = hf_config["vision_feature_select_strategy"], kind == "clip_vision_model"
        allowed = ["default", "full"] if clip else ["full"]  # SigLIP has no class token to drop
        if chosen not in allowed:
            supported = f"{' and '.join(map(repr, allowed))} of {kind}"
            raise UserError(f"vision_feature_select_strategy: {chosen!r} is not supported ({supported})")
        hf_config = {**hf_config, "vision_config": hf_config["vision_config"] or _LARGE}
        return {**_TOWERS[kind].read(hf_config), "feature_tokens": "all" if clip and chosen == "full" else "patches"}

    def write(self, config: Any) -> dict[str, Any]:
        kind = "clip_vision_model" if config.image.embedding_norm else "siglip_vision_model"
        image = _TOWERS[kind].write(config)["vision_config"]
        chosen = "default" if config.image.prefix and config.feature_tokens != "all" else "full"
        return {"vision_config": {**image, "model_type": kind}, "vision_feature_select_strategy": chosen}


# (projection_size, hidden_size): without the first, both are equal.
_PROJECTED = Codec(lambda size, width: (size or width, width), lambda size, width: (size or width, width))
_TOKEN = Codec(lambda index, token: token if index is None else index, lambda token: (token, token))
LLAVA_FIELDS = (
    _Tower(),
    _Decoder(),
    Field("feature_layer", "vision_feature_layer", default=-2),
    Field("projector_bias", "multimodal_projector_bias", default=True),
    Field("image_token", ("image_token_index", "image_token_id"), _TOKEN, (None, 32_000)),
    Field("activation", "projector_hidden_act", ACTIVATION, "gelu"),
)
BLOCK = {f"attention/{name}": f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")}
BLOCK |= {"attention_norm": "layer_norm1", "mlp_norm": "layer_norm2", "mlp/in": "mlp.fc1", "mlp/out": "mlp.fc2"}
_VECTOR = Op(lambda t: (t[None],), lambda parts: parts[0][0])  # [D] in the tensor, [1, D] as a parameter
_SCALAR = Op(lambda t: (t.reshape(()),), lambda parts: parts[0].reshape(1))  # [1] in the tensor


def _image_tower(config: Any) -> list[Rule]:
    pool = "attention_pool/attention"
    projections = tuple(f"{pool}/{name}" for name in "qkv")
    return [
        *dense("patch", "embeddings.patch_embedding", conv(config.patch_size)),
        *copy("class_token", "embeddings.class_embedding", _VECTOR),
        *copy("positions", "embeddings.position_embedding.weight"),
        *named({"embed_norm": "pre_layrnorm", "stack/norm": "post_layernorm"}),
        *blocks("encoder.layers.{i}", BLOCK),
        *copy("attention_pool/query", "head.probe", LEADING),
        Rule(tuple(f"{path}/kernel" for path in projections), "head.attention.in_proj_weight", split(3, 0, True)),
        Rule(tuple(f"{path}/bias" for path in projections), "head.attention.in_proj_bias", split(3, 0)),
        *named({f"{pool}/out": "head.attention.out_proj", "attention_pool/norm": "head.layernorm"}),
        *named({"attention_pool/mlp/in": "head.mlp.fc1", "attention_pool/mlp/out": "head.mlp.fc2"}),
    ]


def _towers(config: Any) -> list[Rule]:
    images = under("image_tower/", "vision_model.", _image_tower(config.image))
    return [*images, *under("text_tower/", "text_model.", _text_tower(config.text))]


def _text_tower(config: Any) -> list[Rule]:
    ends = {"embed": "embeddings.token_embedding", "position_embed": "embeddings.position_embedding"}
    return [*named({**ends, "stack/norm": "final_layer_norm"}), *blocks("encoder.layers.{i}", BLOCK)]


PAIRS = Inputs({"input_ids": "BT", "pixel_values": "ICHW"}, {"attention_mask": "BT"})


def _tower_outputs(encoded: Encoded, vector: jax.Array, normed: bool = True) -> dict[str, jax.Array]:
    """Returns the outputs of a tower; `normed`: the last hidden state is normalised."""
    assert encoded.states is not None
    last = encoded.tokens if normed else encoded.states[-1]
    return {"last_hidden_state": last, "pooler_output": vector, **hidden_states(encoded.states, None)}


def _text_vector(config: Any, states: jax.Array, tokens: jax.Array, hf_config: HFConfig) -> jax.Array:
    """Returns the hidden state that stands for a text: in CLIP at the end of the text, in SigLIP the last one."""
    if config.attention != "causal":
        return states[:, -1]
    end = _END if hf_config.get("eos_token_id") is None else hf_config["eos_token_id"]
    # In early files the id is 2, and a text ends at the token with the largest id.
    ends = jnp.argmax(tokens if end == 2 else tokens == end, axis=1)
    return jnp.take_along_axis(states, ends[:, None, None], axis=1)[:, 0]


def _two_towers(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig, loss: Any) -> dict[str, jax.Array]:
    """Returns embeddings, scores and outputs of both towers, and the loss for as many images as texts.

    `loss` computes the loss from the scores.
    """
    apply, valid = functools.partial(module.apply, {"params": params}), inputs.get("attention_mask")
    c, tokens = module.config, inputs["input_ids"]
    image = apply(pixels(inputs["pixel_values"]), states=True, method="encode_image")
    text = apply(tokens, None if valid is None else Keys(valid), states=True, method="encode_text")
    image_vector = apply(image.pooled, method="project_image")
    read = _text_vector(c.text, text.tokens, tokens, group(hf_config, "text_config"))
    text_vector = apply(read, method="project_text")
    out = {"image_embeds": normalize(image_vector, -1), "text_embeds": normalize(text_vector, -1)}
    towers = {
        "vision": _tower_outputs(image, image_vector, not c.image.embedding_norm),
        "text": _tower_outputs(text, text_vector),
    }
    out |= {f"{name}_model_output.{key}": value for name, tower in towers.items() for key, value in tower.items()}
    scores = apply(method="scale") * out["text_embeds"] @ out["image_embeds"].T + params.get("logit_bias", 0.0)
    out |= {"logits_per_text": scores, "logits_per_image": scores.T}
    return out | ({"loss": loss(scores)} if len(scores) == len(scores.T) else {})


def clip(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """Returns the outputs of CLIP with its contrastive loss, for the inputs PAIRS."""

    def loss(scores: jax.Array) -> jax.Array:
        pairs = jnp.arange(len(scores))
        return (token_loss(scores, pairs) + token_loss(scores.T, pairs)) / 2

    return _two_towers(module, params, inputs, hf_config, loss)


def siglip(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """Returns the outputs of SigLIP with its sigmoid loss of all pairs, for the inputs PAIRS."""

    def loss(scores: jax.Array) -> jax.Array:
        signs = 2 * jnp.eye(len(scores)) - 1
        return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * scores), axis=1))

    return _two_towers(module, params, inputs, hf_config, loss)


def _image(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """Returns the outputs of an image tower by itself, for pixel_values."""
    c, apply = module.config, functools.partial(module.apply, {"params": params})
    encoded = apply(pixels(inputs["pixel_values"]), states=True)
    out = _tower_outputs(encoded, encoded.pooled, not c.embedding_norm)
    return {**out, "image_embeds": apply(encoded.pooled, method="logits")} if c.classes else out


def _text(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """Returns the outputs of a text tower by itself, for input_ids and attention_mask; its read-out is a projection."""
    c, apply = module.config, functools.partial(module.apply, {"params": params})
    tokens, valid = inputs["input_ids"], inputs.get("attention_mask")
    mask: Mask = Causal() if c.attention == "causal" else Full()
    encoded = apply(tokens, mask=mask if valid is None else mask & Keys(valid), states=True)
    vector = _text_vector(c, encoded.tokens, tokens, hf_config)
    projected = vector if c.tied else apply(vector, method="logits")
    if c.attention != "causal":
        return _tower_outputs(encoded, projected)
    return {**_tower_outputs(encoded, vector), **({} if c.tied else {"text_embeds": projected})}


def llava(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """Returns logits, hidden states and loss of the decoder, and the image tokens that it reads."""
    apply, valid = functools.partial(module.apply, {"params": params}), inputs.get("attention_mask")
    images = pixels(inputs["pixel_values"]) if "pixel_values" in inputs else None
    encoded = apply(inputs["input_ids"], images, mask=None if valid is None else Keys(valid), states=True)
    logits = apply(encoded.tokens, method="logits")
    out = {"logits": logits, **hidden_states(encoded.states, encoded.tokens)}
    if images is not None:
        patches = apply(images, method="patches")
        out["image_hidden_states"] = patches.reshape(-1, patches.shape[-1])
    if "labels" in inputs:
        labels = inputs["labels"][:, 1:]
        labels = labels if valid is None else jnp.where(valid[:, 1:] == 1, labels, -100)
        out["loss"] = token_loss(logits[:, :-1], labels)
    return out


def _check_image_tokens(config: Any, inputs: Mapping[str, np.ndarray]) -> None:
    """Raises UserError unless there are as many image tokens as patches."""
    if "pixel_values" in inputs:
        tokens = np.count_nonzero(inputs["input_ids"] == config.image_token)
        images, _, *shape = inputs["pixel_values"].shape
        patches = images * LLaVA(config, parent=None).patch_count((*shape,))
        if tokens != patches:
            raise UserError(
                f"input_ids: got {tokens} image tokens (id {config.image_token}), but the images have {patches} patches"
            )


CLIP = Family(
    "clip",
    CLIP_FIELDS,
    (Head("CLIPModel"),),
    lambda config: [
        *_towers(config),
        *named({"image_projection": "visual_projection", "text_projection": "text_projection"}),
        *copy("log_scale", "logit_scale"),
    ],
    clip,
    PAIRS,
    ignored=(r"position_ids$",),
    current=_clip_of_early_files,
)
SIGLIP = Family(
    "siglip",
    SIGLIP_FIELDS,
    (Head("SiglipModel"),),
    lambda config: [
        *_towers(config),
        *named({"text_projection": "text_model.head"}),
        *copy("log_scale", "logit_scale", _SCALAR),
        *copy("logit_bias", "logit_bias", _SCALAR),
    ],
    siglip,
    PAIRS,
    ignored=(r"position_ids$",),
)
_image_family = functools.partial(
    Family, outputs=_image, inputs=Inputs({"pixel_values": "ICHW"}, {}), model="vit", prefix="vision_model.", tower=True
)
_text_family = functools.partial(
    Family,
    outputs=_text,
    inputs=Inputs({"input_ids": "BT"}, {"attention_mask": "BT"}),
    model="ssljax.models.clip:TextConfig",
    prefix="text_model.",
    tower=True,
    ignored=(r"position_ids$",),
)
CLIP_IMAGE = _image_family(
    "clip_vision_model",
    _CLIP_IMAGE,
    (
        Head(
            "CLIPVisionModelWithProjection",
            {"heads_on": ("unbiased",)},
            counts(classes=("projection_dim", 512)),
        ),
        Head("CLIPVisionModel"),
    ),
    lambda config: [*under("", "vision_model.", _image_tower(config)), *dense("head", "visual_projection")],
    ignored=(r"position_ids$",),
)
SIGLIP_IMAGE = _image_family(
    "siglip_vision_model",
    (*_SIGLIP_IMAGE, _POOL),
    (Head("SiglipVisionModel"),),
    lambda config: under("", "vision_model.", _image_tower(config)),
)
CLIP_TEXT = _text_family(
    "clip_text_model",
    (*_CLIP_TEXT, _Written(lambda config: _ENDS_AT_LARGEST)),
    (
        Head("CLIPTextModelWithProjection", {"tied": False}, counts(readout_size=("projection_dim", 512))),
        Head("CLIPTextModel"),
    ),
    lambda config: [*under("", "text_model.", _text_tower(config)), *readout("text_projection")],
)
SIGLIP_TEXT = _text_family(
    "siglip_text_model",
    (
        *_SIGLIP_TEXT,
        Field(("readout_size", "width"), ("projection_size", "hidden_size"), _PROJECTED, (None, 768)),
        constant("tied", False),
        constant("readout_bias", True),
    ),
    (Head("SiglipTextModel"),),
    lambda config: under("", "text_model.", [*_text_tower(config), *readout("head")]),
)
LLAVA = Family(
    "llava",
    LLAVA_FIELDS,
    (Head("LlavaForConditionalGeneration"),),
    lambda config: [
        *under("vision/", "vision_tower.", _image_tower(config.image)),
        *named({"project_in": "linear_1", "project_out": "linear_2"}, tensor="multi_modal_projector."),
        *under("language/", "language_model.", _decoder_of(config.text).rules(config.text)),
    ],
    llava,
    Inputs({"input_ids": "BT"}, {"pixel_values": "ICHW", "attention_mask": "BT", "labels": "BT"}),
    check_inputs=_check_image_tokens,
    ignored=(r"position_ids$",),
    renames=(
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        (r"^vision_tower\.vision_model\.", "vision_tower."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
    ),
)
