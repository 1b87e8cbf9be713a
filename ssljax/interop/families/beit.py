"""BEiT."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.interop.families.vit import (
    BLOCK,
    DEFAULTS,
    HIDDEN,
    LEADING,
    VIT,
    architecture,
    embeddings,
    outputs,
    pooled,
    read,
    write,
)
from ssljax.interop.rules import Rule, blocks, copy, dense, norm


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


def _a_label_for_each_hidden(ours: Any, inputs: Mapping[str, np.ndarray]) -> None:
    """Where visual tokens are named, only those of hidden patches are."""
    if "labels" in inputs and "bool_masked_pos" in inputs:
        labels, hidden = len(inputs["labels"]), np.count_nonzero(inputs["bool_masked_pos"])
        if labels != hidden:
            raise UserError(f"labels: got {labels}, must be one for each of the {hidden} hidden patches")


def _read_beit(theirs: Mapping[str, Any]) -> dict[str, Any]:
    masked = "MaskedImageModeling" in architecture(theirs)
    mean, scale = theirs["use_mean_pooling"], theirs["layer_scale_init_value"]
    if masked and not mean:
        raise UserError("config.json: use_mean_pooling: false is not supported for BeitForMaskedImageModeling")
    biased = theirs["use_relative_position_bias"] or theirs["use_shared_relative_position_bias"]
    return {
        **read({**theirs, "qkv_bias": True}, pooled=False),
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
    masked = ours.classes and ours.pool == "mean" and not ours.norm_after_pool
    named = {"architectures": ["BeitForMaskedImageModeling"], "vocab_size": ours.classes} if masked else {}
    return {
        **named,
        **{k: v for k, v in write(ours).items() if k != "qkv_bias"},
        "use_mean_pooling": ours.pool == "mean",
        "use_absolute_position_embeddings": ours.positions == "learned",
        "use_relative_position_bias": biased and ours.layer_bias,
        "use_shared_relative_position_bias": biased and not ours.layer_bias,
        "layer_scale_init_value": float(ours.layer_scale or 0),
        "use_mask_token": ours.mask_token,
    }


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
    classifier="BeitForImageClassification",
    prefix="beit.",
    outputs=functools.partial(outputs, read=pooled, pool=pooled),
    inputs=HIDDEN._replace(takes={"bool_masked_pos": "BN", "labels": "L"}),
    fit=_a_label_for_each_hidden,
    ignored=(r"relative_position_index$",),
)
