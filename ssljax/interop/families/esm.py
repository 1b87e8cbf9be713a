"""ESM-2 without its token dropout: BERT with rotary positions and norms before the parts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ssljax.base.errors import UserError
from ssljax.interop.families.bert import BERT, BLOCK, OWN_KEYS, nothing
from ssljax.interop.inputs import Inputs
from ssljax.interop.rules import TRANSPOSE, Rule, blocks, copy, dense, norm, table


def _rules(config: Any) -> list[Rule]:
    names = {**BLOCK, "attention_norm": "attention.LayerNorm", "mlp_norm": "LayerNorm"}
    return [
        *table("embed", "esm.embeddings.word_embeddings"),
        *norm("embed_norm", "esm.embeddings.layer_norm"),
        *blocks("esm.encoder.layer.{i}", names),
        *norm("stack/norm", "esm.encoder.emb_layer_norm_after"),
        *dense("head_dense", "lm_head.dense"),
        *norm("head_norm", "lm_head.layer_norm"),
        Rule(("head_kernel",), "lm_head.decoder.weight", TRANSPOSE),
        *copy("head_bias", "lm_head.bias"),
    ]


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in (("position_embedding_type", "rotary"), ("token_dropout", False), ("is_folding_model", False)):
        if theirs[key] != value:
            raise UserError(f"config.json: {key}: {theirs[key]!r} is not supported (only {value!r})")
    return {
        "norm_position": "pre",
        "activation": "gelu",
        "positions": "none",
        "rope_theta": float(theirs["rope_theta"]),
        "embedding_norm": bool(theirs["emb_layer_norm_before"]),
    }


ESM = dataclasses.replace(
    BERT,
    keys={k: v for k, v in OWN_KEYS.items() if k != "token_types"},
    defaults={
        "model_type": "esm",
        "layer_norm_eps": 1e-12,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1026,
        "position_embedding_type": "absolute",
        "rope_theta": 10_000.0,
        "emb_layer_norm_before": None,
        "token_dropout": False,
        "is_folding_model": False,
    },
    read=_read,
    write=lambda ours: {
        "pad_token_id": 0,  # must be some id
        "position_embedding_type": "rotary",
        "rope_theta": ours.rope_theta,
        "emb_layer_norm_before": ours.embedding_norm,
    },
    rules=_rules,
    architecture="EsmForMaskedLM",
    inputs=Inputs({"input_ids": "BT"}, {"attention_mask": "BT", "labels": "BT"}),
    prefix="esm.",
    ignored=(r"inv_freq$", r"contact_head\.", r"position_(ids|embeddings\.weight)$"),
    only={},
    copies={},
    constants=nothing,
)
