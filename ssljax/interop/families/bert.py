"""BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA (both halves) and ModernBERT."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.interop.family import (
    KEYS,
    Family,
    activation,
    activation_back,
    hidden_states,
    kinds_of,
    token_loss,
)
from ssljax.interop.rules import Rule, copy, dense, fused, norm, readout, split, table
from ssljax.layers.masks import Full, Keys

OWN_KEYS = {**KEYS, "norm_eps": "layer_norm_eps", "token_types": "type_vocab_size"}


def masked_lm(module: Any, params: Any, inputs: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """input_ids, attention_mask, token_type_ids, labels -> outputs of an encoder with the read-outs that it has."""
    c, tokens, valid = module.config, inputs["input_ids"], inputs.get("attention_mask")

    def apply(method: str, x: jax.Array) -> jax.Array:
        return module.apply({"params": params}, x, method=method)

    where = None
    if c.position_offset:  # RoBERTa counts what is not padding, whose id is one less than the offset
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
        return out
    logits = apply("logits", encoded.tokens)
    out |= {"logits": logits, "prediction_logits": logits}
    pair = apply("pair_logits", encoded.pooled) if "pair" in c.extras else None
    if pair is not None:
        out |= {"seq_relationship_logits": pair, "sop_logits": pair}
    if "labels" in inputs:
        out["loss"] = token_loss(logits, inputs["labels"])
        for name in ("next_sentence_label", "sentence_order_label"):
            if name in inputs and pair is not None:
                out["loss"] += token_loss(pair, inputs[name])
    return out


def blocks(block: str, names: Mapping[str, str], here: str = "stack/layers") -> list[Rule]:
    rules: list[Rule] = []
    for ours, theirs in names.items():
        rules += (norm if ours.endswith("_norm") else dense)(f"{here}/{ours}", f"{block}.{theirs}")
    return rules


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


def _bert(config: Any) -> list[Rule]:
    return [
        *embeddings("bert"),
        *blocks("bert.encoder.layer.{i}", BLOCK),
        *dense("pooler", "bert.pooler.dense"),
        *dense("head_dense", "cls.predictions.transform.dense"),
        *norm("head_norm", "cls.predictions.transform.LayerNorm"),
        *copy("head_bias", "cls.predictions.bias"),
        *dense("pair", "cls.seq_relationship"),
    ]


def _roberta(config: Any) -> list[Rule]:
    return [
        *embeddings("roberta"),
        *blocks("roberta.encoder.layer.{i}", BLOCK),
        *dense("head_dense", "lm_head.dense"),
        *norm("head_norm", "lm_head.layer_norm"),
        *copy("head_bias", "lm_head.bias"),
    ]


def _distilbert(config: Any) -> list[Rule]:
    names = {f"attention/{name}": f"attention.{name}_lin" for name in ("q", "k", "v", "out")}
    names |= {"attention_norm": "sa_layer_norm", "mlp_norm": "output_layer_norm"}
    return [
        *embeddings("distilbert"),
        *blocks("distilbert.transformer.layer.{i}", {**names, "mlp/in": "ffn.lin1", "mlp/out": "ffn.lin2"}),
        *dense("head_dense", "vocab_transform"),
        *norm("head_norm", "vocab_layer_norm"),
        *copy("head_bias", "vocab_projector.bias"),
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
        *copy("head_bias", "predictions.bias"),
        *dense("pair", "sop_classifier.classifier"),
    ]


def _electra(config: Any) -> list[Rule]:
    return [
        *embeddings("electra"),
        *dense("embed_project", "electra.embeddings_project"),
        *blocks("electra.encoder.layer.{i}", BLOCK),
        *dense("head_dense", "generator_predictions.dense"),
        *norm("head_norm", "generator_predictions.LayerNorm"),
        *copy("head_bias", "generator_lm_head.bias"),
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
    if theirs.get("position_embedding_type", "absolute") != "absolute":
        raise UserError("config.json: position_embedding_type: only 'absolute' is supported")
    out: dict[str, Any] = {"activation": activation(theirs["hidden_act"], "hidden_act")}
    heads = " ".join(theirs.get("architectures") or ())
    if "ForPreTraining" in heads or not heads.endswith("LM"):
        out["extras"] = ["pooler", "pair"]
    return out


def _write(ours: Any) -> dict[str, Any]:
    return {"hidden_act": activation_back(ours.activation)}


def _heads_of(name: str, whole: str) -> Callable[[Any], dict[str, Any]]:
    """Their keys, with the class that has the heads of ours: `whole` those besides language modelling too."""
    return lambda ours: {**_write(ours), "architectures": [whole if ours.extras else f"{name}ForMaskedLM"]}


def _read_roberta(theirs: Mapping[str, Any]) -> dict[str, Any]:
    offset = theirs["pad_token_id"] + 1
    return {
        **_read(theirs),
        "extras": [],
        "position_offset": offset,
        "max_len": theirs["max_position_embeddings"] - offset,
    }


def _read_albert(theirs: Mapping[str, Any]) -> dict[str, Any]:
    groups = theirs["num_hidden_groups"]
    if theirs["inner_group_num"] != 1:
        raise UserError(f"config.json: inner_group_num: {theirs['inner_group_num']} is not supported (only 1)")
    return {**_read(theirs), "depth": groups, "repeats": theirs["num_hidden_layers"] // groups}


def _read_electra(theirs: Mapping[str, Any]) -> dict[str, Any]:
    masked = "ElectraForMaskedLM" in (theirs.get("architectures") or ())
    out: dict[str, Any] = {"extras": []} if masked else {"extras": ["replaced"]}
    if not masked:
        out |= {"readout_transform": False, "readout_bias": False}
    return {**_read(theirs), **out}


def _read_modernbert(theirs: Mapping[str, Any]) -> dict[str, Any]:
    every = theirs.get("global_attn_every_n_layers", 3)
    kinds = theirs.get("layer_types") or [
        "full_attention" if i % every == 0 else "sliding_attention" for i in range(theirs["num_hidden_layers"])
    ]
    rope = theirs.get("rope_parameters") or {}
    thetas = {
        "rope_theta": rope.get("full_attention", {}).get("rope_theta") or theirs.get("global_rope_theta", 160_000.0),
        "rope_theta_local": rope.get("sliding_attention", {}).get("rope_theta")
        or theirs.get("local_rope_theta")
        or 10_000.0,
    }
    parts = {"attention_bias": ("q", "k", "v", "out"), "mlp_bias": ("mlp",), "norm_bias": ("norm",)}
    return {
        **thetas,
        "activation": activation(theirs["hidden_activation"], "hidden_activation", gated=True),
        "readout_activation": activation(theirs["classifier_activation"], "classifier_activation"),
        "layer_kinds": kinds_of(kinds),
        "window": theirs["local_attention"] // 2 + 1,
        "bias_except": [part for key, names in parts.items() if theirs.get(key) for part in names],
        "readout_bias": theirs.get("decoder_bias", True),
    }


def _write_modernbert(ours: Any) -> dict[str, Any]:
    kinds = [ours.layer_kinds[i % len(ours.layer_kinds)] for i in range(ours.depth)]
    local = ours.rope_theta_local or ours.rope_theta
    thetas = {"full_attention": ours.rope_theta, "sliding_attention": local}
    return {
        "hidden_activation": activation_back(ours.activation),
        "classifier_activation": activation_back(ours.readout_activation or ours.activation),
        **({"local_attention": 2 * (ours.window - 1)} if ours.window else {}),
        "layer_types": ["sliding_attention" if kind == "local" else "full_attention" for kind in kinds],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
        "attention_bias": ours.has_bias("q"),
        "mlp_bias": ours.has_bias("mlp"),
        "norm_bias": ours.has_bias("norm"),
        "decoder_bias": ours.readout_bias,
    }


SAME = {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "tie_word_embeddings": True, "max_position_embeddings": 512}
BERT = Family(
    model="bert",
    keys=OWN_KEYS,
    defaults={**SAME, "model_type": "bert", "type_vocab_size": 2},
    read=_read,
    write=_heads_of("Bert", "BertForPreTraining"),
    rules=_bert,
    architecture="BertForPreTraining",
    prefix="bert.",
    outputs=masked_lm,
    ignored=(r"position_ids$", r"cls\.predictions\.decoder\.(weight|bias)$"),
)
ROBERTA = dataclasses.replace(
    BERT,
    model="roberta",
    keys={k: v for k, v in OWN_KEYS.items() if k != "max_len"},
    defaults={**SAME, "model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 1},
    read=_read_roberta,
    write=lambda ours: {
        **_write(ours),
        "pad_token_id": ours.position_offset - 1,
        "max_position_embeddings": ours.max_len + ours.position_offset,
    },
    rules=_roberta,
    architecture="RobertaForMaskedLM",
    prefix="roberta.",
    ignored=(r"position_ids$", r"lm_head\.decoder\.(weight|bias)$", r"roberta\.pooler"),
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
    read=lambda theirs: {"activation": activation(theirs["activation"], "activation")},
    write=lambda ours: {"activation": activation_back(ours.activation)},
    rules=_distilbert,
    architecture="DistilBertForMaskedLM",
    prefix="distilbert.",
    ignored=(r"position_ids$", r"vocab_projector\.weight$"),
)
ALBERT = dataclasses.replace(
    BERT,
    model="albert",
    keys={**{k: v for k, v in OWN_KEYS.items() if k != "depth"}, "embedding_dim": "embedding_size"},
    defaults={**BERT.defaults, "model_type": "albert", "hidden_act": "gelu_new", "embedding_size": 128}
    | {"num_hidden_groups": 1, "inner_group_num": 1},
    read=_read_albert,
    write=lambda ours: {
        **_heads_of("Albert", "AlbertForPreTraining")(ours),
        "num_hidden_groups": ours.depth,
        "num_hidden_layers": ours.depth * ours.repeats,
    },
    rules=_albert,
    architecture="AlbertForPreTraining",
    prefix="albert.",
    ignored=(r"position_ids$", r"predictions\.decoder\.(weight|bias)$"),
)
ELECTRA = dataclasses.replace(
    BERT,
    model="electra",
    keys={**OWN_KEYS, "embedding_dim": "embedding_size"},
    defaults={**BERT.defaults, "model_type": "electra", "embedding_size": 128},
    read=_read_electra,
    write=_heads_of("Electra", "ElectraForPreTraining"),
    rules=_electra,
    architecture="ElectraForPreTraining",
    prefix="electra.",
    ignored=(r"position_ids$", r"generator_lm_head\.weight$"),
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
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    read=_read_modernbert,
    write=_write_modernbert,
    rules=_modernbert,
    architecture="ModernBertForMaskedLM",
    prefix="model.",
    ignored=(r"decoder\.weight$",),
)
