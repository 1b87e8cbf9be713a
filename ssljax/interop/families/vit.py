"""ViT, DeiT, I-JEPA's encoder and the audio spectrogram transformer; fields and rules that image encoders share."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.interop.codecs import ACTIVATION, PAIR, Codec
from ssljax.interop.family import Family, Head, Labels
from ssljax.interop.fields import SIZES, Biases, Declaration, Field, counts
from ssljax.interop.inputs import Inputs
from ssljax.interop.outputs import HFConfig, InputArrays, hidden_states, refuse_labels, token_loss
from ssljax.interop.rules import LEADING, Op, Rule, blocks, copy, dense, named
from ssljax.models.family import Encoded


def _read_image(size: Any, channels: int) -> tuple[int, int, int]:
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width, channels


def _write_image(shape: tuple[int, int, int]) -> tuple[Any, int]:
    height, width, channels = shape
    return height if height == width else [height, width], channels


NORM_EPS = Field("norm_eps", "layer_norm_eps", default=1e-12)
ACT = Field("activation", "hidden_act", ACTIVATION, "gelu")
IMAGE = (
    *counts(patch_size=("patch_size", 16)),
    Field("image_shape", ("image_size", "num_channels"), Codec(_read_image, _write_image), (224, 3)),
)
QKV_BIAS = Biases({"qkv_bias": ("q", "k", "v")}, bias=True)
FIELDS = (*SIZES, NORM_EPS, *IMAGE, ACT, QKV_BIAS)
_SOUND = Codec(lambda bins, length: (bins, length, 1), lambda shape: shape[:2])
AST_FIELDS = (
    *SIZES,
    NORM_EPS,
    ACT,
    QKV_BIAS,
    *counts(patch_size=("patch_size", 16)),
    Field("image_shape", ("num_mel_bins", "max_length"), _SOUND, (128, 1024)),
    Field("strides", ("frequency_stride", "time_stride"), PAIR, (10, 10)),
)
LABELS = (Labels(),)
_POOLER = {"heads_on": ("pooler",)}, (Field("pooler_activation", "pooler_act", ACTIVATION, "tanh"),)
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
TOKENS = {"class_token": "cls_token", "distillation_token": "distillation_token", "registers": "register_tokens"}


def conv(patch: int) -> Op:
    """The kernel of the patch embedding, [out, channels, rows, columns] in the tensor."""
    return Op(
        lambda t: (t.transpose(2, 3, 1, 0).reshape(-1, t.shape[0]),),
        lambda parts: parts[0].reshape(patch, patch, -1, parts[0].shape[-1]).transpose(3, 2, 0, 1),
    )


def embeddings(config: Any, root: str) -> list[Rule]:
    """Patches, prefix tokens and positions; `root` begins the names of the tensors."""
    return [
        *dense("patch", f"{root}embeddings.patch_embeddings.projection", conv(config.patch_size)),
        *(Rule((path,), f"{root}embeddings.{tensor}", LEADING) for path, tensor in TOKENS.items()),
        *copy("positions", f"{root}embeddings.position_embeddings", LEADING),
    ]


def encoder(config: Any, root: str, block: Mapping[str, str] = BLOCK) -> list[Rule]:
    """Embeddings, blocks with the given tensors, final norm and pooler."""
    return [
        *embeddings(config, root),
        *blocks(f"{root}encoder.layer.{{i}}", block),
        *named({"stack/norm": "layernorm", "pooler": "pooler.dense"}, tensor=root),
    ]


def pixels(array: jax.Array) -> jax.Array:
    """[B, C, H, W] -> [B, H, W, C]."""
    return jnp.transpose(array, (0, 2, 3, 1))


def class_token(encoded: Encoded) -> jax.Array:
    return encoded.prefix[:, 0]  # type: ignore[index]


def pooled(encoded: Encoded) -> jax.Array:
    return encoded.pooled


IMAGES = Inputs({"pixel_values": "BCHW"}, {"labels": "B"})
HIDDEN = IMAGES.plus(bool_masked_pos="BN")
SOUNDS = Inputs({"input_values": "BTF"}, {"labels": "B"})


def outputs(
    module: Any,
    params: Any,
    inputs: InputArrays,
    hf_config: HFConfig,
    read: Callable[[Encoded], jax.Array] = class_token,
    pool: Callable[[Encoded], jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """Returns outputs of an encoder and its heads, for the inputs IMAGES, SOUNDS or HIDDEN.

    `read` returns the input of the classifier, `pool` the pooler_output of a model without a pooler.
    """
    c, apply = module.config, functools.partial(module.apply, {"params": params})
    x = inputs["input_values"] if "input_values" in inputs else pixels(inputs["pixel_values"])
    hidden = inputs.get("bool_masked_pos")
    encoded = apply(x, patch_mask=None if hidden is None else hidden.astype(bool), states=True)
    tokens = encoded.tokens
    if encoded.prefix is not None:
        tokens = jnp.concatenate([encoded.prefix, tokens], axis=1)
    out = {"last_hidden_state": tokens, "base.last_hidden_state": tokens, **hidden_states(encoded.states, None)}
    if "pooler" in c.heads_on:
        out["pooler_output"] = apply(class_token(encoded), method="pooler_output")
    elif pool is not None:
        out["pooler_output"] = pool(encoded)
    if not c.classes:
        refuse_labels(inputs, "labels")
        return out
    if hidden is not None and c.pool == "mean":  # BEiT predicts the visual tokens of hidden patches
        out["base.last_hidden_state"] = encoded.states[-1]
        logits = out["logits"] = apply(encoded.tokens, method="logits")
        if "labels" in inputs:
            out["loss"] = token_loss(logits[jnp.nonzero(hidden, size=len(inputs["labels"]))], inputs["labels"])
        return out
    out["logits"] = apply(read(encoded), method="logits")
    if "distilled" in c.heads_on:
        assert encoded.prefix is not None
        out["cls_logits"] = out["logits"]
        out["distillation_logits"] = apply(encoded.prefix[:, 1], method="distilled_logits")
        out["logits"] = (out["cls_logits"] + out["distillation_logits"]) / 2
    if "labels" in inputs:
        out["loss"] = token_loss(out["logits"], inputs["labels"])
    return out


def _family(
    kind: str,
    fields: Sequence[Declaration],
    heads: Sequence[Head],
    ends: Callable[[Any], Mapping[str, str]] = lambda config: {"head": "classifier"},
    **more: Any,
) -> Family:
    """An encoder with its tensors under its own name; `ends`: config -> {path: tensor} of its heads."""
    root = f"{kind.replace('-', '_')}."

    def rules(config: Any) -> list[Rule]:
        return [*encoder(config, root), *named(ends(config))]

    return Family(kind, fields, heads, rules, **{"outputs": outputs, "inputs": IMAGES, "prefix": root, **more})


VIT = _family("vit", FIELDS, (Head("ViTForImageClassification", {"heads_on": ()}, LABELS), Head("ViTModel", *_POOLER)))
DEIT = _family(
    "deit",
    FIELDS,
    (
        Head("DeiTForImageClassificationWithTeacher", {"heads_on": ("distilled",)}, LABELS),
        Head("DeiTForImageClassification", {"heads_on": ()}, LABELS),
        Head("DeiTModel", *_POOLER),
    ),
    lambda config: {
        "head": "cls_classifier" if "distilled" in config.heads_on else "classifier",
        "distilled_head": "distillation_classifier",
    },
)
IJEPA = _family(
    "ijepa",
    FIELDS,
    (Head("IJepaForImageClassification", fields=LABELS), Head("IJepaModel")),
    outputs=functools.partial(outputs, read=pooled),
    ignored=(r"pooler\.",),
)
AST = _family(
    "audio-spectrogram-transformer",
    AST_FIELDS,
    (Head("ASTForAudioClassification", {"heads_on": ("norm",)}, LABELS), Head("ASTModel")),
    lambda config: {"head_norm": "classifier.layernorm", "head": "classifier.dense"},
    outputs=functools.partial(outputs, read=pooled, pool=pooled),
    inputs=SOUNDS,
    model="ast",
)
