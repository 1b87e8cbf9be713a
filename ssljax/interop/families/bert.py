"""BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA (both halves) and ModernBERT."""

import dataclasses
import functools
from typing import Any

import numpy as np

from ssljax.interop.codecs import ACTIVATION, COUNT, GATED_ACTIVATION, OWN_WIDTH, Codec
from ssljax.interop.family import Family, Head
from ssljax.interop.fields import SIZES, Biases, Field, LayerKinds, counts, required, sizes
from ssljax.interop.outputs import MASKED_LM, TYPED, masked_lm
from ssljax.interop.rotary import RotaryByKind
from ssljax.interop.rules import Rule, blocks, fused, named, norm, readout, split

VOCABULARY = (*counts(vocab_size=("vocab_size", 30_522)), Field("tied", "tie_word_embeddings", default=True))
TOKENS = (*VOCABULARY, *counts(max_len=("max_position_embeddings", 512)))
ACT = Field("activation", "hidden_act", ACTIVATION, "gelu")
NORM_EPS = Field("norm_eps", "layer_norm_eps", default=1e-12)
# `transformers` has no model without token types; with one type, all tokens get the same vector.
TYPES = Field("token_types", "type_vocab_size", COUNT._replace(write=lambda types: max(types, 1)), 2)
ENCODER = (
    *SIZES,
    ACT,
    NORM_EPS,
    required("is_decoder", False),
    required("add_cross_attention", False),
    required("position_embedding_type", "absolute"),
)
# (pad_token_id, rows of the table) <-> (position_offset, max_len): positions are counted from the id of padding + 1.
_FROM_PADDING = Codec(
    lambda padding, rows: (padding + 1, rows - padding - 1), lambda offset, length: (offset - 1, offset + length)
)


def _read_repeats(layers: int, groups: int, inner: int) -> tuple[int, int, int]:
    """Returns (depth, repeats, group); a layer of ALBERT's files is one application of a group."""
    if layers % groups:
        raise ValueError(f"{groups} groups do not divide the {layers} layers")
    return groups * inner, layers // groups, inner


_REPEATS = Codec(_read_repeats, lambda depth, repeats, group: (depth // group * repeats, depth // group, group))
# `local_attention` counts keys on both sides; `window` counts those on one side and the token itself.
_ONE_SIDE = Codec(lambda both: both // 2 + 1, lambda window: 2 * ((window or 1) - 1))
_BIASES = {"attention_bias": ("q", "k", "v", "out"), "mlp_bias": ("mlp",), "norm_bias": ("norm",)}
_BIASES |= {"classifier_bias": ("readout",)}
MODERNBERT_FIELDS = (
    *VOCABULARY,
    *counts(max_len=("max_position_embeddings", 8192)),
    *SIZES,
    Field("norm_eps", "norm_eps", default=1e-5),
    RotaryByKind("global_rope_theta", "local_rope_theta"),
    Field("activation", "hidden_activation", GATED_ACTIVATION, "gelu"),
    Field("readout_activation", "classifier_activation", ACTIVATION, "gelu"),
    LayerKinds(lambda hf_config, i: i % hf_config["global_attn_every_n_layers"] == 0),
    Field("window", "local_attention", _ONE_SIDE, 128),
    Biases(_BIASES, bias=False),
    Field("readout_bias", "decoder_bias", default=True),
)
# A model without the transform before the read-out does not predict tokens.
_WITH_READOUT = {"readout_transform": True}
_WITHOUT_READOUT = {"readout_transform": False, "readout_bias": False}


def heads(name: str, task: str = "MaskedLM") -> tuple[Head, ...]:
    """The classes of a model: with a read-out, and without."""
    return Head(f"{name}For{task}", _WITH_READOUT), Head(f"{name}Model", _WITHOUT_READOUT)


def _pair_heads(name: str) -> tuple[Head, ...]:
    """The classes of an encoder that is also trained on pairs of sentences."""
    return Head(f"{name}ForPreTraining", {**_WITH_READOUT, "extras": ("pooler", "pair")}), *heads(name)


_ELECTRA_HEADS = (
    Head("ElectraForMaskedLM", _WITH_READOUT),
    Head("ElectraForPreTraining", {**_WITHOUT_READOUT, "extras": ("replaced",)}),
    Head("ElectraModel", _WITHOUT_READOUT),
)
BLOCK = {
    "attention/q": "attention.self.query",
    "attention/k": "attention.self.key",
    "attention/v": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/in": "intermediate.dense",
    "mlp/out": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
EMBEDDINGS = {
    "embed": "embeddings.word_embeddings",
    "position_embed": "embeddings.position_embeddings",
    "type_embed": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
}


def _albert(config: Any) -> list[Rule]:
    block = {
        **{f"attention/{name[0]}": f"attention.{name}" for name in ("query", "key", "value")},
        "attention/out": "attention.dense",
        "attention_norm": "attention.LayerNorm",
        "mlp/in": "ffn",
        "mlp/out": "ffn_output",
        "mlp_norm": "full_layer_layer_norm",
    }
    path = "stack/layers/block" if config.repeats > 1 else "stack/layers"
    inner = [(i, f"{path}/block_{i}" if config.group > 1 else path) for i in range(config.group)]
    return [
        *named({**EMBEDDINGS, "pooler": "pooler"}, tensor="albert."),
        *named({"embed_project": "albert.encoder.embedding_hidden_mapping_in"}),
        *(
            r
            for i, path in inner
            for r in blocks(f"albert.encoder.albert_layer_groups.{{i}}.albert_layers.{i}", block, path)
        ),
        *named({"head_dense": "predictions.dense", "head_norm": "predictions.LayerNorm"}),
        *readout("predictions.decoder", "predictions.bias" if config.tied else ""),
        *named({"pair": "sop_classifier.classifier"}),
    ]


def _modernbert(config: Any) -> list[Rule]:
    block, path = "model.layers.{i}", "stack/layers"
    return [
        *named({"embed": "embeddings.tok_embeddings", "embed_norm": "embeddings.norm"}, tensor="model."),
        *(rule._replace(skip=1) for rule in norm(f"{path}/attention_norm", f"{block}.attn_norm")),
        *fused([f"{path}/attention/{name}" for name in "qkv"], f"{block}.attn.Wqkv", split(3, 0, True)),
        *fused([f"{path}/mlp/gate", f"{path}/mlp/in"], f"{block}.mlp.Wi", split(2, 0, True)),
        *blocks(block, {"attention/out": "attn.Wo", "mlp_norm": "mlp_norm", "mlp/out": "mlp.Wo"}),
        *named({"stack/norm": "model.final_norm", "head_dense": "head.dense", "head_norm": "head.norm"}),
        *readout("decoder"),
    ]


def _one_type(config: Any, inner: str) -> dict[str, np.ndarray]:
    """A table of one token type, of zeros, for a model without token types."""
    table = np.zeros((1, config.embedding_dim or config.width), np.float32)
    return {} if config.token_types else {f"{inner}.embeddings.token_type_embeddings.weight": table}


encoder = functools.partial(
    Family,
    outputs=masked_lm,
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    # Files repeat the bias of an untied read-out under an older name.
    ignored=(r"position_ids$", r"^(cls\.predictions|predictions|lm_head)\.bias$"),
)
BERT = encoder(
    "bert",
    (*TOKENS, *ENCODER, TYPES),
    _pair_heads("Bert"),
    lambda config: [
        *named({**EMBEDDINGS, "pooler": "pooler.dense"}, tensor="bert."),
        *blocks("bert.encoder.layer.{i}", BLOCK),
        *named({"head_dense": "transform.dense", "head_norm": "transform.LayerNorm"}, tensor="cls.predictions."),
        *readout("cls.predictions.decoder", "cls.predictions.bias" if config.tied else ""),
        *named({"pair": "cls.seq_relationship"}),
    ],
    inputs=TYPED.plus(next_sentence_label="B"),
    prefix="bert.",
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    constants=functools.partial(_one_type, inner="bert"),
)
_PADDED = Field(("position_offset", "max_len"), ("pad_token_id", "max_position_embeddings"), _FROM_PADDING, (1, 512))
ROBERTA = encoder(
    "roberta",
    (*VOCABULARY, _PADDED, *ENCODER, TYPES),
    heads("Roberta"),
    lambda config: [
        *named({**EMBEDDINGS, "pooler": "pooler.dense"}, tensor="roberta."),
        *blocks("roberta.encoder.layer.{i}", BLOCK),
        *named({"head_dense": "lm_head.dense", "head_norm": "lm_head.layer_norm"}),
        *readout("lm_head.decoder", "lm_head.bias" if config.tied else ""),
    ],
    inputs=TYPED,
    prefix="roberta.",
    copies={"lm_head.decoder.bias": "lm_head.bias"},
    defaults={"vocab_size": 50_265},
    constants=functools.partial(_one_type, inner="roberta"),
)
_roberta = functools.partial(dataclasses.replace, ROBERTA, defaults={})
XLM_ROBERTA = _roberta(model_type="xlm-roberta", heads=heads("XLMRoberta"))
CAMEMBERT = _roberta(model_type="camembert", heads=heads("Camembert"))
_DISTILBERT_BLOCK = {f"attention/{name}": f"attention.{name}_lin" for name in ("q", "k", "v", "out")}
_DISTILBERT_BLOCK |= {"attention_norm": "sa_layer_norm", "mlp_norm": "output_layer_norm"}
_DISTILBERT_BLOCK |= {"mlp/in": "ffn.lin1", "mlp/out": "ffn.lin2"}
_DISTILBERT_SIZES = counts(
    width=("dim", 768), depth=("n_layers", 6), heads=("n_heads", 12), mlp_dim=("hidden_dim", 3072)
)
DISTILBERT = encoder(
    "distilbert",
    (*TOKENS, *_DISTILBERT_SIZES, Field("activation", "activation", ACTIVATION, "gelu")),
    heads("DistilBert"),
    lambda config: [
        *named({path: tensor for path, tensor in EMBEDDINGS.items() if path != "type_embed"}, tensor="distilbert."),
        *blocks("distilbert.transformer.layer.{i}", _DISTILBERT_BLOCK),
        *named({"head_dense": "vocab_transform", "head_norm": "vocab_layer_norm"}),
        *readout("vocab_projector"),
    ],
    inputs=MASKED_LM,
    prefix="distilbert.",
)
ALBERT = encoder(
    "albert",
    (
        *TOKENS,
        *ENCODER,
        TYPES,
        *counts(embedding_dim=("embedding_size", 128)),
        Field(("depth", "repeats", "group"), ("num_hidden_layers", "num_hidden_groups", "inner_group_num"), _REPEATS),
    ),
    _pair_heads("Albert"),
    _albert,
    inputs=TYPED.plus(sentence_order_label="B"),
    defaults={
        **sizes(30_000, 4096, 16_384, 12, 64, 512),
        "hidden_act": "gelu_new",
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    },
    prefix="albert.",
    copies={"predictions.decoder.bias": "predictions.bias"},
    constants=functools.partial(_one_type, inner="albert"),
)
_OWN_WIDTH = Field(("embedding_dim", "width"), ("embedding_size", "hidden_size"), OWN_WIDTH, (128, 768))
ELECTRA = encoder(
    "electra",
    (*TOKENS, *ENCODER, TYPES, _OWN_WIDTH),
    _ELECTRA_HEADS,
    lambda config: [
        *named({**EMBEDDINGS, "embed_project": "embeddings_project"}, tensor="electra."),
        *blocks("electra.encoder.layer.{i}", BLOCK),
        *named({"head_dense": "dense", "head_norm": "LayerNorm"}, tensor="generator_predictions."),
        *readout("generator_lm_head"),
        *named({"replaced_dense": "dense", "replaced_logit": "dense_prediction"}, tensor="discriminator_predictions."),
    ],
    inputs=TYPED,
    defaults=sizes(30_522, 256, 1024, 12, 4, 512),
    prefix="electra.",
    constants=functools.partial(_one_type, inner="electra"),
)
MODERNBERT = encoder(
    "modernbert",
    MODERNBERT_FIELDS,
    heads("ModernBert"),
    _modernbert,
    inputs=MASKED_LM,
    defaults={"global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
    | sizes(50_368, 768, 1152, 22, 12, 8192),
    prefix="model.",
)
