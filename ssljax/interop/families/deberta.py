"""DeBERTa v2 and v3."""

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.interop.families.bert import BERT, BLOCK, OWN_KEYS, embeddings, named, nothing, read_heads
from ssljax.interop.family import Family, activation, activation_back
from ssljax.interop.inputs import Inputs
from ssljax.interop.rules import TRANSPOSE, Op, Rule, blocks, copy, dense, norm
from ssljax.layers.terms.base import logit_scale

PROJECTIONS = {"q": "query_proj", "k": "key_proj", "v": "value_proj"}
PROJECTIONS |= {"distance_q": "pos_query_proj", "distance_k": "pos_key_proj"}


def convolution(size: int) -> Op:
    """[out, in, size] there, [size in, out] here."""
    return Op(
        lambda t: (t.transpose(2, 1, 0).reshape(-1, t.shape[0]),),
        lambda parts: np.asarray(parts[0]).reshape(size, -1, parts[0].shape[1]).transpose(2, 1, 0),
    )


def rules(transform: str, bias: str, matrix: str) -> Callable[[Any], list[Rule]]:
    """The names, with those of the transform before the read-out, and of the bias and the matrix of that."""

    def rules(config: Any) -> list[Rule]:
        encoder, size = "deberta.encoder", config.convolution.size if config.convolution else 1
        return [
            *embeddings("deberta"),
            *copy("stack/distances", f"{encoder}.rel_embeddings.weight"),
            *norm("stack/distances_norm", f"{encoder}.LayerNorm"),
            *dense("stack/convolution/conv", f"{encoder}.conv.conv", convolution(size)),
            *norm("stack/convolution", f"{encoder}.conv.LayerNorm"),
            *blocks(
                f"{encoder}.layer.{{i}}",
                BLOCK | {f"attention/{ours}": f"attention.self.{theirs}" for ours, theirs in PROJECTIONS.items()},
            ),
            *dense("head_dense", f"{transform}.dense"),
            *norm("head_norm", f"{transform}.LayerNorm"),
            Rule(("head_kernel",), f"{matrix}.weight", TRANSPOSE),
            *copy("head_bias", bias),
        ]

    return rules


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in (("embedding_size", theirs["hidden_size"]), ("conv_groups", 1)):
        if theirs.get(key, value) != value:
            raise UserError(f"config.json: {key}: {theirs[key]} is not supported (only {value})")
    kinds = theirs["pos_att_type"] or ()
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    terms = [term for term in ("c2p", "p2c") if term in (kind.strip() for kind in kinds)]
    width = theirs.get("attention_head_size") or theirs["hidden_size"] // theirs["num_attention_heads"]
    out: dict[str, Any] = {
        **read_heads(theirs),
        "activation": activation(theirs["hidden_act"], "hidden_act"),
        "head_dim": width,
        "positions": "learned" if theirs["position_biased_input"] else "none",
        "token_types": theirs["type_vocab_size"],
        "disentangled": None,
    }
    if theirs["relative_attention"]:
        furthest, buckets = theirs.get("max_relative_positions", -1), theirs.get("position_buckets", -1)
        out["disentangled"] = {
            "terms": terms,
            "buckets": buckets if buckets > 0 else None,
            "max_distance": furthest if furthest > 0 else theirs["max_position_embeddings"],
            "shared": theirs.get("share_att_key", False),
            "norm": "layer_norm" in theirs.get("norm_rel_ebd", "none").lower(),
        }
    elif terms:
        out["attention_scale"] = logit_scale(width, len(terms))
    if theirs.get("conv_kernel_size", 0) > 0:
        act = activation(theirs.get("conv_act", "tanh"), "conv_act")
        out["convolution"] = {"size": theirs["conv_kernel_size"], "activation": act}
    return out


def _write(ours: Any) -> dict[str, Any]:
    out = {
        **named(ours, "DebertaV2ForMaskedLM", "DebertaV2ForMaskedLM", "DebertaV2Model"),
        "hidden_act": activation_back(ours.activation),
        "attention_head_size": ours.head_width,
        "position_biased_input": ours.positions == "learned",
        "type_vocab_size": ours.token_types,
        "relative_attention": ours.disentangled is not None,
    }
    if ours.disentangled is not None:
        d = ours.disentangled
        out |= {"pos_att_type": list(d.terms), "position_buckets": d.buckets or -1, "share_att_key": d.shared}
        out |= {"max_relative_positions": d.max_distance, "norm_rel_ebd": "layer_norm" if d.norm else "none"}
    if ours.convolution is not None:
        act = activation_back(ours.convolution.activation)
        out |= {"conv_kernel_size": ours.convolution.size, "conv_act": act}
    return out


def _variant(theirs: Mapping[str, Any], names: Container[str]) -> Family:
    """Two namings of the read-out are in use; the published third version has the newer one without saying so."""
    return NEWER if not theirs.get("legacy", True) or "lm_predictions.lm_head.bias" in names else DEBERTA


DEBERTA = dataclasses.replace(
    BERT,
    model="deberta",
    keys={k: v for k, v in OWN_KEYS.items() if k != "token_types"},
    defaults={**BERT.defaults, "model_type": "deberta-v2", "layer_norm_eps": 1e-7, "type_vocab_size": 0}
    | {"relative_attention": False, "position_biased_input": True, "pos_att_type": None},
    read=_read,
    write=_write,
    rules=rules("cls.predictions.transform", "cls.predictions.bias", "cls.predictions.decoder"),
    architecture="DebertaV2ForMaskedLM",
    inputs=Inputs({"input_ids": "BT"}, {"attention_mask": "BT", "token_type_ids": "BT", "labels": "BT"}),
    prefix="deberta.",
    ignored=(*BERT.ignored, r"mask_predictions\.", r"embeddings\.position_embeddings\."),
    variant=_variant,
    only={},
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    constants=nothing,
)
HEAD = "lm_predictions.lm_head"
NEWER = dataclasses.replace(
    DEBERTA,
    write=lambda ours: {**_write(ours), "legacy": False},
    rules=rules(HEAD, f"{HEAD}.bias", f"{HEAD}.decoder"),
)
