"""CLIP, SigLIP and LLaVA: an image tower and a text tower, or a decoder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
from ssljax.interop.rules import LEADING, Op, Rule, blocks, copy, dense, named, split, under
from ssljax.layers.heads import normalize
from ssljax.layers.masks import Keys
from ssljax.models.llava import LLaVA

_END = 49_407  # id of the end of a text in CLIP


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
class _Repeated(Declaration):
    """Keys of a group that repeat what other keys state: config -> their values; written, never read."""

    key: str
    values: Callable[[Any], dict[str, Any]]

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        return {}

    def write(self, config: Any) -> dict[str, Any]:
        return {self.key: self.values(config)}


CLIP_FIELDS = (
    Group("image", "vision_config", _CLIP_IMAGE),
    Group("text", "text_config", _CLIP_TEXT),
    Field("embed_dim", "projection_dim", default=512),
    _Repeated("vision_config", lambda c: {"model_type": "clip_vision_model", "projection_dim": c.embed_dim}),
    _Repeated("text_config", lambda c: {"model_type": "clip_text_model", "projection_dim": c.embed_dim}),
    _Repeated("text_config", lambda c: {"eos_token_id": 2}),  # a text ends at its largest id
)
SIGLIP_FIELDS = (
    Group("image", "vision_config", (*_SIGLIP_IMAGE, constant("pool", "map"), required("vision_use_head", True))),
    Group("text", "text_config", _SIGLIP_TEXT),
    _Repeated("vision_config", lambda c: {"model_type": "siglip_vision_model"}),
    _Repeated("text_config", lambda c: {"model_type": "siglip_text_model", "projection_size": c.image.width}),
)
# The decoders of LLaVA, and the sizes of those that its config.json leaves out.
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
DECODERS: dict[str, tuple[Family, Sequence[int]]] = {
    "llama": (llama.LLAMA, (32_000, 4096, 11_008, 32, 32)),
    "mistral": (llama.MISTRAL, (32_000, 4096, 14_336, 32, 32)),
    "qwen2": (llama.QWEN2, (151_936, 4096, 22_016, 32, 32)),
    "qwen3": (llama.QWEN3, (151_936, 4096, 22_016, 32, 32)),
    "gemma": (llama.GEMMA, (256_000, 3072, 24_576, 28, 16)),
    "gemma2": (llama.GEMMA2, (256_000, 2304, 9216, 26, 8)),
}


def _decoder_of(config: Any) -> Family:
    """The family of a decoder's configuration: of its class, or of the nearest class above it."""
    classes = {models.REGISTRY.get(family.model): family for family, _ in DECODERS.values()}
    return next(classes[cls] for cls in type(config).__mro__ if cls in classes)


class _Decoder(Declaration):
    """`text`, of the family that its `model_type` names."""

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        text = {key: value for key, value in group(hf_config, "text_config").items() if value is not None}
        kind = text.get("model_type", "llama")
        if kind not in DECODERS:
            raise UserError(f"text_config.model_type: {kind!r} is not supported ({', '.join(DECODERS)})")
        family, sizes = DECODERS[kind]
        with within("text_config"):
            return {"text": family.read({**dict(zip(_SIZES, sizes)), **text})}

    def write(self, config: Any) -> dict[str, Any]:
        return {"text_config": _decoder_of(config.text).write_config(config.text)}


_POOL = Field("pool", "vision_use_head", names({True: "map", False: "mean"}), True)
_TOWERS = {
    "clip_vision_model": Group("image", "vision_config", _CLIP_IMAGE),
    "siglip_vision_model": Group("image", "vision_config", (*_SIGLIP_IMAGE, _POOL)),
}


class _Tower(Declaration):
    """`image`, CLIP's or SigLIP's tower, and `feature_tokens`, the tokens of it that the decoder reads."""

    defaults = {"vision_feature_select_strategy": "default"}  # noqa: RUF012 (never mutated)

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        kind = group(hf_config, "vision_config").get("model_type", "clip_vision_model")
        if kind not in _TOWERS:
            raise UserError(f"vision_config.model_type: {kind!r} is not supported ({', '.join(_TOWERS)})")
        chosen, clip = hf_config["vision_feature_select_strategy"], kind == "clip_vision_model"
        allowed = ["default", "full"] if clip else ["full"]  # SigLIP has no class token to drop
        if chosen not in allowed:
            supported = f"{' and '.join(map(repr, allowed))} of {kind}"
            raise UserError(f"vision_feature_select_strategy: {chosen!r} is not supported ({supported})")
        return {**_TOWERS[kind].read(hf_config), "feature_tokens": "all" if clip and chosen == "full" else "patches"}

    def write(self, config: Any) -> dict[str, Any]:
        kind = "clip_vision_model" if config.image.embedding_norm else "siglip_vision_model"
        image = _TOWERS[kind].write(config)["vision_config"]
        chosen = "default" if config.image.prefix and config.feature_tokens != "all" else "full"
        return {"vision_config": {**image, "model_type": kind}, "vision_feature_select_strategy": chosen}


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


def _text_tower() -> list[Rule]:
    ends = {"embed": "embeddings.token_embedding", "position_embed": "embeddings.position_embedding"}
    return [*named({**ends, "stack/norm": "final_layer_norm"}), *blocks("encoder.layers.{i}", BLOCK)]


def _towers(config: Any) -> list[Rule]:
    return [
        *under("image_tower/", "vision_model.", _image_tower(config.image)),
        *under("text_tower/", "text_model.", _text_tower()),
    ]


PAIRS = Inputs({"input_ids": "BT", "pixel_values": "ICHW"}, {"attention_mask": "BT"})


def _towers_out(module: Any, variables: Any, inputs: InputArrays, pooled: Any) -> dict[str, jax.Array]:
    """Outputs of both towers by name; `pooled` makes the vector of a text from its hidden states."""
    images, tokens = pixels(inputs["pixel_values"]), inputs["input_ids"]
    valid = inputs.get("attention_mask")
    image = module.apply(variables, images, states=True, method="encode_image")
    mask = None if valid is None else Keys(valid)
    text = module.apply(variables, tokens, mask, states=True, method="encode_text")
    image_vector = module.apply(variables, image.pooled, method="project_image")
    text_vector = module.apply(variables, pooled(text.tokens), method="project_text")
    # CLIP gives the output of the last block of the image tower, without the norm.
    causal = module.config.text.attention == "causal"
    last = image.states[-1] if causal else image.tokens
    images_out = {"last_hidden_state": last, "pooler_output": image_vector, **hidden_states(image.states, None)}
    texts_out = {"last_hidden_state": text.tokens, "pooler_output": text_vector, **hidden_states(text.states, None)}
    return {
        "image_embeds": normalize(image_vector, -1),
        "text_embeds": normalize(text_vector, -1),
        **{f"vision_model_output.{name}": value for name, value in images_out.items()},
        **{f"text_model_output.{name}": value for name, value in texts_out.items()},
    }


def clip(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """PAIRS -> embeddings, similarities and, if there are as many images as texts, the loss of pairs."""
    tokens = inputs["input_ids"]
    end = hf_config.get("text_config", {}).get("eos_token_id", _END)
    # Early files name 2 as the end of a text, which then ends at the token with the largest id.
    ends = jnp.argmax(tokens if end == 2 else tokens == end, axis=1)

    def pooled(states: jax.Array) -> jax.Array:
        return jnp.take_along_axis(states, ends[:, None, None], axis=1)[:, 0]

    def loss(scores: jax.Array) -> jax.Array:
        pairs = jnp.arange(len(scores))
        return (token_loss(scores, pairs) + token_loss(scores.T, pairs)) / 2

    return _scored(module, params, inputs, pooled, loss)


def siglip(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
    """PAIRS -> embeddings, scores and, if there are as many images as texts, the sigmoid loss of all pairs."""

    def loss(scores: jax.Array) -> jax.Array:
        signs = 2 * jnp.eye(len(scores)) - 1
        return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * scores), axis=1))

    return _scored(module, params, inputs, lambda states: states[:, -1], loss)


def _scored(module: Any, params: Any, inputs: InputArrays, pooled: Any, loss: Any) -> dict[str, jax.Array]:
    """Outputs of both towers, their scores and the loss of the scores."""
    variables = {"params": params}
    out = _towers_out(module, variables, inputs, pooled)
    scores = module.apply(variables, method="scale") * out["text_embeds"] @ out["image_embeds"].T
    scores = scores + params.get("logit_bias", 0.0)
    out |= {"logits_per_text": scores, "logits_per_image": scores.T}
    return out | ({"loss": loss(scores)} if len(scores) == len(scores.T) else {})


def llava(module: Any, params: Any, inputs: InputArrays, hf_config: HFConfig) -> dict[str, jax.Array]:
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
        labels = labels if valid is None else jnp.where(valid[:, 1:] == 1, labels, -100)
        out["loss"] = token_loss(logits[:, :-1], labels)
    return out


def _check_image_tokens(config: Any, inputs: Mapping[str, np.ndarray]) -> None:
    """Each patch needs the place of one token."""
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
