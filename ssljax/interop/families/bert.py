"""BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA (both halves) and ModernBERT."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.interop.family import (
    KEYS,
    Family,
    activation,
    activation_back,
    headless,
    hidden_states,
    kinds_back,
    kinds_of,
    rotary,
    rotary_back,
    token_loss,
)
from ssljax.interop.inputs import Inputs
from ssljax.interop.rules import TRANSPOSE, Rule, blocks, copy, dense, fused, norm, readout, split, table
from ssljax.layers.masks import Full, Keys

OWN_KEYS = {**KEYS, "norm_eps": "layer_norm_eps", "token_types": "type_vocab_size"}


_PAIR_LABELS = ("next_sentence_label", "sentence_order_label")
MASKED_LM = Inputs({"input_ids": "BT"}, {"attention_mask": "BT", "position_ids": "BT", "labels": "BT"})
TYPED = MASKED_LM._replace(takes={**MASKED_LM.takes, "token_type_ids": "BT"})


def masked_lm(module: Any, params: Any, inputs: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """MASKED_LM, of some families with token_type_ids and a label of the pair -> outputs of an encoder with the
    read-outs that it has."""
    c, tokens, valid = module.config, inputs["input_ids"], inputs.get("attention_mask")

    def apply(method: str, x: jax.Array) -> jax.Array:
        return module.apply({"params": params}, x, method=method)

    where = inputs.get("position_ids")
    if where is not None:
        where = where - c.position_offset
    elif c.position_offset:  # RoBERTa counts what is not padding, whose id is one less than the offset
        text = (tokens != c.position_offset - 1).astype(jnp.int32)
        where = jnp.cumsum(text, axis=1) * text - 1
    encoded = module.apply(
        {"params": params},
        tokens,
        mask=Full() if valid is None else Keys(valid),
        positions=where,
        token_types=inputs.get("token_type_ids"),
        states=True,
    )
    out = {"last_hidden_state": encoded.tokens, "base.last_hidden_state": encoded.tokens}
    out |= hidden_states(encoded.states, encoded.tokens)
    if "pooler" in c.extras:
        out |= {"pooler_output": encoded.pooled, "base.pooler_output": encoded.pooled}
    if "replaced" in c.extras:
        out["logits"] = apply("replaced_logits", encoded.tokens)
        if "labels" in inputs:
            weights = jnp.ones_like(tokens) if valid is None else valid
            z, y = out["logits"], inputs["labels"]
            values = jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))
            out["loss"] = jnp.sum(values * weights) / jnp.sum(weights)
        return out
    if not c.readout_transform:  # a file without the head of language modelling
        headless(inputs, "labels", *_PAIR_LABELS)
        return out
    logits = apply("logits", encoded.tokens)
    out |= {"logits": logits, "prediction_logits": logits}
    pair = apply("pair_logits", encoded.pooled) if "pair" in c.extras else None
    if pair is not None:
        out |= {"seq_relationship_logits": pair, "sop_logits": pair}
    else:
        headless(inputs, *_PAIR_LABELS)
    if "labels" in inputs:
        out["loss"] = token_loss(logits, inputs["labels"])
        for name in _PAIR_LABELS:
            if name in inputs and pair is not None:
                out["loss"] += token_loss(pair, inputs[name])
    return out


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


def embeddings(inner: str) -> list[Rule]:
    return [
        *table("embed", f"{inner}.embeddings.word_embeddings"),
        *table("position_embed", f"{inner}.embeddings.position_embeddings"),
        *table("type_embed", f"{inner}.embeddings.token_type_embeddings"),
        *norm("embed_norm", f"{inner}.embeddings.LayerNorm"),
    ]


def head(config: Any, tied: str, own: str) -> list[Rule]:
    """The read-out's matrix where it has its own, and its bias: `tied` where the matrix is the table's, else `own`."""
    matrix = Rule(("head_kernel",), f"{own}.weight", TRANSPOSE)
    return [matrix, *copy("head_bias", tied if config.tied else f"{own}.bias")]


def _bert(config: Any) -> list[Rule]:
    return [
        *embeddings("bert"),
        *blocks("bert.encoder.layer.{i}", BLOCK),
        *dense("pooler", "bert.pooler.dense"),
        *dense("head_dense", "cls.predictions.transform.dense"),
        *norm("head_norm", "cls.predictions.transform.LayerNorm"),
        *head(config, "cls.predictions.bias", "cls.predictions.decoder"),
        *dense("pair", "cls.seq_relationship"),
    ]


def _roberta(config: Any) -> list[Rule]:
    return [
        *embeddings("roberta"),
        *blocks("roberta.encoder.layer.{i}", BLOCK),
        *dense("pooler", "roberta.pooler.dense"),
        *dense("head_dense", "lm_head.dense"),
        *norm("head_norm", "lm_head.layer_norm"),
        *head(config, "lm_head.bias", "lm_head.decoder"),
    ]


def _distilbert(config: Any) -> list[Rule]:
    names = {f"attention/{name}": f"attention.{name}_lin" for name in ("q", "k", "v", "out")}
    names |= {"attention_norm": "sa_layer_norm", "mlp_norm": "output_layer_norm"}
    return [
        *(rule for rule in embeddings("distilbert") if rule.ours != ("type_embed/embedding",)),
        *blocks("distilbert.transformer.layer.{i}", {**names, "mlp/in": "ffn.lin1", "mlp/out": "ffn.lin2"}),
        *dense("head_dense", "vocab_transform"),
        *norm("head_norm", "vocab_layer_norm"),
        *readout("vocab_projector"),
    ]


def _albert(config: Any) -> list[Rule]:
    names = {"attention/q": "attention.query", "attention/k": "attention.key", "attention/v": "attention.value"}
    names |= {"attention/out": "attention.dense", "attention_norm": "attention.LayerNorm"}
    names |= {"mlp/in": "ffn", "mlp/out": "ffn_output", "mlp_norm": "full_layer_layer_norm"}
    here = "stack/layers/block" if config.repeats > 1 else "stack/layers"
    return [
        *embeddings("albert"),
        *dense("embed_project", "albert.encoder.embedding_hidden_mapping_in"),
        *blocks("albert.encoder.albert_layer_groups.{i}.albert_layers.0", names, here),
        *dense("pooler", "albert.pooler"),
        *dense("head_dense", "predictions.dense"),
        *norm("head_norm", "predictions.LayerNorm"),
        *head(config, "predictions.bias", "predictions.decoder"),
        *dense("pair", "sop_classifier.classifier"),
    ]


def _electra(config: Any) -> list[Rule]:
    return [
        *embeddings("electra"),
        *dense("embed_project", "electra.embeddings_project"),
        *blocks("electra.encoder.layer.{i}", BLOCK),
        *dense("head_dense", "generator_predictions.dense"),
        *norm("head_norm", "generator_predictions.LayerNorm"),
        *readout("generator_lm_head"),
        *dense("replaced_dense", "discriminator_predictions.dense"),
        *dense("replaced_logit", "discriminator_predictions.dense_prediction"),
    ]


def _modernbert(config: Any) -> list[Rule]:
    block, here = "model.layers.{i}", "stack/layers"
    return [
        *table("embed", "model.embeddings.tok_embeddings"),
        *norm("embed_norm", "model.embeddings.norm"),
        *(rule._replace(skip=1) for rule in norm(f"{here}/attention_norm", f"{block}.attn_norm")),
        *fused([f"{here}/attention/{name}" for name in "qkv"], f"{block}.attn.Wqkv", split(3, 0, True)),
        *dense(f"{here}/attention/out", f"{block}.attn.Wo"),
        *norm(f"{here}/mlp_norm", f"{block}.mlp_norm"),
        *fused([f"{here}/mlp/gate", f"{here}/mlp/in"], f"{block}.mlp.Wi", split(2, 0, True)),
        *dense(f"{here}/mlp/out", f"{block}.mlp.Wo"),
        *norm("stack/norm", "model.final_norm"),
        *dense("head_dense", "head.dense"),
        *norm("head_norm", "head.norm"),
        *readout("decoder"),
    ]


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {"activation": activation(theirs["hidden_act"], "hidden_act"), **read_heads(theirs)}


def read_heads(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The read-outs of the class that a config names; `hf.load` looks which ones the tensors have."""
    name = "".join(theirs.get("architectures") or ())
    if "ForPreTraining" in name:
        return {"extras": ["pooler", "pair"]}
    return {} if "LM" in name or not name else {"readout_transform": False, "readout_bias": False}


def _write(ours: Any) -> dict[str, Any]:
    return {"hidden_act": activation_back(ours.activation), "type_vocab_size": max(ours.token_types, 1)}


def named(ours: Any, whole: str, masked: str, bare: str) -> dict[str, Any]:
    """The class that has the read-outs of a model: of words and pairs, of words, none."""
    words = ours.readout_transform
    return {"architectures": [whole if words and "pair" in ours.extras else masked if words else bare]}


def _read_roberta(theirs: Mapping[str, Any]) -> dict[str, Any]:
    offset = theirs["pad_token_id"] + 1
    return {**_read(theirs), "position_offset": offset, "max_len": theirs["max_position_embeddings"] - offset}


def _write_roberta(ours: Any) -> dict[str, Any]:
    places = {"pad_token_id": ours.position_offset - 1, "max_position_embeddings": ours.max_len + ours.position_offset}
    classes = named(ours, "RobertaForMaskedLM", "RobertaForMaskedLM", "RobertaModel")
    return {**_write(ours), **classes, **places}


def _read_albert(theirs: Mapping[str, Any]) -> dict[str, Any]:
    layers, groups = theirs["num_hidden_layers"], theirs["num_hidden_groups"]
    if layers % groups:
        raise UserError(f"config.json: num_hidden_groups: {groups} does not divide the {layers} layers")
    return {**_read(theirs), "depth": groups, "repeats": layers // groups}


def _write_albert(ours: Any) -> dict[str, Any]:
    layers = {"num_hidden_groups": ours.depth, "num_hidden_layers": ours.depth * ours.repeats}
    return {**_write(ours), **named(ours, "AlbertForPreTraining", "AlbertForMaskedLM", "AlbertModel"), **layers}


def _read_electra(theirs: Mapping[str, Any]) -> dict[str, Any]:
    width = theirs["embedding_size"]
    out = {**_read(theirs), "embedding_dim": None if width == theirs["hidden_size"] else width}
    if "ElectraForPreTraining" in (theirs.get("architectures") or ()):
        out |= {"extras": ["replaced"], "readout_transform": False, "readout_bias": False}
    return out


def _write_electra(ours: Any) -> dict[str, Any]:
    bare = "ElectraForPreTraining" if "replaced" in ours.extras else "ElectraModel"
    classes = named(ours, "ElectraForMaskedLM", "ElectraForMaskedLM", bare)
    return {**_write(ours), **classes, "embedding_size": ours.embedding_dim or ours.width}


_BIASES = {
    "attention_bias": ("q", "k", "v", "out"),
    "mlp_bias": ("mlp",),
    "norm_bias": ("norm",),
    "classifier_bias": ("readout",),
}


def _read_modernbert(theirs: Mapping[str, Any]) -> dict[str, Any]:
    every, layers = theirs["global_attn_every_n_layers"], range(theirs["num_hidden_layers"])
    kinds = theirs["layer_types"] or ["sliding_attention" if i % every else "full_attention" for i in layers]
    rope, thetas = theirs.get("rope_parameters") or {}, ("global_rope_theta", "local_rope_theta")
    both = [
        rotary({**theirs, "rope_parameters": rope.get(kind), "rope_theta": theirs[theta]})
        for kind, theta in zip(("full_attention", "sliding_attention"), thetas)
    ]
    if both[0].get("rope_scaling") != both[1].get("rope_scaling"):
        raise UserError("config.json: rope_parameters: scalings that differ between kinds of layers are not supported")
    return {
        **read_heads(theirs),
        **both[0],
        "rope_theta_local": both[1]["rope_theta"],
        "activation": activation(theirs["hidden_activation"], "hidden_activation", gated=True),
        "readout_activation": activation(theirs["classifier_activation"], "classifier_activation"),
        "layer_kinds": kinds_of(kinds),
        "window": theirs["local_attention"] // 2 + 1,
        "bias_except": [part for key, parts in _BIASES.items() if theirs[key] for part in parts],
        **({} if theirs["decoder_bias"] else {"readout_bias": False}),
    }


def _write_modernbert(ours: Any) -> dict[str, Any]:
    rotation = rotary_back(ours)
    full = rotation.pop("rope_parameters")
    local = {**full, "rope_theta": ours.rope_theta_local or ours.rope_theta}
    return {
        **named(ours, "ModernBertForMaskedLM", "ModernBertForMaskedLM", "ModernBertModel"),
        **rotation,
        **{key: ours.has_bias(parts[0]) for key, parts in _BIASES.items()},
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        "hidden_activation": activation_back(ours.activation),
        "classifier_activation": activation_back(ours.readout_activation or ours.activation),
        "local_attention": 2 * ((ours.window or 1) - 1),
        "layer_types": kinds_back(ours),
        "decoder_bias": ours.readout_bias,
    }


def nothing(ours: Any) -> dict[str, np.ndarray]:
    return {}


def _one_type(inner: str) -> Callable[[Any], dict[str, np.ndarray]]:
    """A model without token types has one there, of zeros."""
    name = f"{inner}.embeddings.token_type_embeddings.weight"

    def constants(ours: Any) -> dict[str, np.ndarray]:
        return {} if ours.token_types else {name: np.zeros((1, ours.embedding_dim or ours.width), np.float32)}

    return constants


SAME = {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "tie_word_embeddings": True, "max_position_embeddings": 512}
ENCODER = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
BERT = Family(
    model="bert",
    keys=OWN_KEYS,
    defaults={**SAME, "model_type": "bert", "type_vocab_size": 2},
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    read=_read,
    write=lambda ours: {**_write(ours), **named(ours, "BertForPreTraining", "BertForMaskedLM", "BertModel")},
    rules=_bert,
    architecture="BertForPreTraining",
    prefix="bert.",
    outputs=masked_lm,
    inputs=TYPED._replace(takes={**TYPED.takes, "next_sentence_label": "B"}),
    only=ENCODER,
    # Where the read-out has a matrix of its own, its bias is stored once more.
    ignored=(r"position_ids$", r"^(cls\.predictions|predictions|lm_head)\.bias$"),
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    constants=_one_type("bert"),
)
ROBERTA = dataclasses.replace(
    BERT,
    model="roberta",
    keys={k: v for k, v in OWN_KEYS.items() if k != "max_len"},
    defaults={**SAME, "model_type": "roberta", "type_vocab_size": 2, "pad_token_id": 1},
    read=_read_roberta,
    write=_write_roberta,
    rules=_roberta,
    architecture="RobertaForMaskedLM",
    inputs=TYPED,
    prefix="roberta.",
    copies={"lm_head.decoder.bias": "lm_head.bias"},
    constants=_one_type("roberta"),
)
DISTILBERT = dataclasses.replace(
    BERT,
    model="distilbert",
    keys={
        "vocab_size": "vocab_size",
        "max_len": "max_position_embeddings",
        "width": "dim",
        "depth": "n_layers",
        "heads": "n_heads",
        "mlp_dim": "hidden_dim",
        "tied": "tie_word_embeddings",
    },
    defaults={"model_type": "distilbert", "activation": "gelu", "tie_word_embeddings": True}
    | {"max_position_embeddings": 512},
    read=lambda theirs: {"activation": activation(theirs["activation"], "activation"), **read_heads(theirs)},
    write=lambda ours: {
        "activation": activation_back(ours.activation),
        **named(ours, "DistilBertForMaskedLM", "DistilBertForMaskedLM", "DistilBertModel"),
    },
    rules=_distilbert,
    architecture="DistilBertForMaskedLM",
    inputs=MASKED_LM,
    prefix="distilbert.",
    only={},
    copies={},
    constants=nothing,
)
ALBERT = dataclasses.replace(
    BERT,
    model="albert",
    keys={**{k: v for k, v in OWN_KEYS.items() if k != "depth"}, "embedding_dim": "embedding_size"},
    defaults={**BERT.defaults, "model_type": "albert", "hidden_act": "gelu_new", "embedding_size": 128}
    | {"num_hidden_groups": 1},
    read=_read_albert,
    write=_write_albert,
    rules=_albert,
    architecture="AlbertForPreTraining",
    inputs=TYPED._replace(takes={**TYPED.takes, "sentence_order_label": "B"}),
    prefix="albert.",
    only={**ENCODER, "inner_group_num": 1},
    copies={"predictions.decoder.bias": "predictions.bias"},
    constants=_one_type("albert"),
)
ELECTRA = dataclasses.replace(
    BERT,
    model="electra",
    defaults={**BERT.defaults, "model_type": "electra", "embedding_size": 128},
    read=_read_electra,
    write=_write_electra,
    rules=_electra,
    architecture="ElectraForPreTraining",
    inputs=TYPED,
    prefix="electra.",
    copies={},
    constants=_one_type("electra"),
)
MODERNBERT = dataclasses.replace(
    BERT,
    model="modernbert",
    keys={k: v for k, v in OWN_KEYS.items() if k not in ("norm_eps", "token_types")} | {"norm_eps": "norm_eps"},
    defaults={
        "model_type": "modernbert",
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "norm_eps": 1e-5,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "layer_types": None,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        "decoder_bias": True,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        **dict.fromkeys(_BIASES, False),
    },
    read=_read_modernbert,
    write=_write_modernbert,
    rules=_modernbert,
    architecture="ModernBertForMaskedLM",
    inputs=MASKED_LM,
    prefix="model.",
    only={},
    copies={},
    constants=nothing,
)
