"""BEiT."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.interop.codecs import Codec, names
from ssljax.interop.families.vit import ACT, BLOCK, HIDDEN, IMAGE, LABELS, NORM_EPS, embeddings, outputs, pooled
from ssljax.interop.family import Family, Head
from ssljax.interop.fields import SIZES, Field, constant, required
from ssljax.interop.rules import LEADING, Rule, blocks, copy, dense, norm

_POOL = Codec(lambda mean: ("mean" if mean else "cls", mean), lambda pool, norm_after: pool == "mean")
_SCALE = Codec(lambda scale: scale if scale and scale > 0 else None, lambda scale: float(scale or 0), null=True)
# (biases of each layer, biases that all layers share) <-> (position_bias, layer_bias).
_GRID = Codec(
    lambda own, shared: ("grid" if own or shared else "none", not shared),
    lambda bias, own: (bias == "grid" and own, bias == "grid" and not own),
)
_BIAS_KEYS = ("use_relative_position_bias", "use_shared_relative_position_bias")
FIELDS = (
    *SIZES,
    NORM_EPS,
    *IMAGE,
    ACT,
    constant("bias_except", ("k",)),
    Field(("pool", "norm_after_pool"), "use_mean_pooling", _POOL, True),
    Field("positions", "use_absolute_position_embeddings", names({False: "none", True: "learned"}), False),
    Field(("position_bias", "layer_bias"), _BIAS_KEYS, _GRID, (False, False)),
    Field("layer_scale", "layer_scale_init_value", _SCALE, 0.1),
    Field("mask_token", "use_mask_token", default=False),
)
# A masked model predicts visual tokens, which are its classes.
_VISUAL_TOKENS = (Field("classes", "vocab_size"), required("use_mean_pooling", True))
HEADS = (
    Head("BeitForMaskedImageModeling", {"pool": "mean", "norm_after_pool": False}, _VISUAL_TOKENS),
    Head("BeitForImageClassification", fields=LABELS),
    Head("BeitModel"),
)


def _rules(config: Any) -> list[Rule]:
    table, path, block = "relative_position_bias.relative_position_bias_table", "stack/layers", "beit.encoder.layer.{i}"
    masked = config.pool == "mean" and not config.norm_after_pool
    return [
        *embeddings(config, "beit."),
        *copy("mask_token", "beit.embeddings.mask_token", LEADING),
        *blocks(block, BLOCK),
        *copy(f"{path}/attention_scale", f"{block}.lambda_1"),
        *copy(f"{path}/mlp_scale", f"{block}.lambda_2"),
        *copy("stack/relative_bias", f"beit.encoder.{table}"),
        *copy(f"{path}/attention/relative_bias", f"{block}.attention.attention.{table}"),
        *norm("stack/norm", "layernorm" if masked else "beit.layernorm"),
        *norm("pooled_norm", "beit.pooler.layernorm"),
        *dense("head", "lm_head" if masked else "classifier"),
    ]


def _check_labels(config: Any, inputs: Mapping[str, np.ndarray]) -> None:
    """Raises UserError unless there is one label, a visual token, for each hidden patch."""
    if "labels" in inputs and "bool_masked_pos" in inputs:
        labels, hidden = len(inputs["labels"]), np.count_nonzero(inputs["bool_masked_pos"])
        if labels != hidden:
            raise UserError(f"labels: got {labels}, must be one for each of the {hidden} hidden patches")


BEIT = Family(
    "beit",
    FIELDS,
    HEADS,
    _rules,
    functools.partial(outputs, read=pooled, pool=pooled),
    HIDDEN.plus(labels="L"),
    defaults={"vocab_size": 8192},
    check_inputs=_check_labels,
    prefix="beit.",
    ignored=(r"relative_position_index$",),
)
