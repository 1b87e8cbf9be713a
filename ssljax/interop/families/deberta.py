"""DeBERTa v2 and v3."""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import numpy as np

from ssljax.interop.codecs import ACTIVATION, OWN_WIDTH, Codec, names
from ssljax.interop.families.bert import ACT, BLOCK, EMBEDDINGS, NORM_EPS, TOKENS, encoder, heads
from ssljax.interop.family import Family
from ssljax.interop.fields import SIZES, Declaration, Field, HFConfig, constant, required, sizes
from ssljax.interop.inputs import Inputs
from ssljax.interop.rules import Op, Rule, blocks, copy, dense, named, norm, readout
from ssljax.layers.terms.base import logit_scale

_PROJECTIONS = {"q": "query_proj", "k": "key_proj", "v": "value_proj"}
_PROJECTIONS |= {"distance_q": "pos_query_proj", "distance_k": "pos_key_proj"}
_BLOCK = BLOCK | {f"attention/{name}": f"attention.self.{tensor}" for name, tensor in _PROJECTIONS.items()}


def _convolution(size: int) -> Op:
    """A kernel [out, in, size] in the tensor, [size in, out] as a parameter."""
    return Op(
        lambda t: (t.transpose(2, 1, 0).reshape(-1, t.shape[0]),),
        lambda parts: np.asarray(parts[0]).reshape(size, -1, parts[0].shape[1]).transpose(2, 1, 0),
    )


def _rules(config: Any, transform: str, head: str) -> list[Rule]:
    """`transform` and `head` begin the names of the tensors before the read-out, and of the read-out."""
    encoder, size = "deberta.encoder", config.convolution.size if config.convolution else 1
    return [
        *named({**EMBEDDINGS, "embed_project": "embeddings.embed_proj"}, tensor="deberta."),
        *copy("stack/distances", f"{encoder}.rel_embeddings.weight"),
        *norm("stack/distances_norm", f"{encoder}.LayerNorm"),
        *dense("stack/convolution/conv", f"{encoder}.conv.conv", _convolution(size)),
        *norm("stack/convolution", f"{encoder}.conv.LayerNorm"),
        *blocks(f"{encoder}.layer.{{i}}", _BLOCK),
        *named({"head_dense": f"{transform}.dense", "head_norm": f"{transform}.LayerNorm"}),
        *readout(f"{head}.decoder", f"{head}.bias"),
    ]


class _Attention(Declaration):
    """`head_dim`, and `disentangled`, or without it `attention_scale`, which depends on the number of its terms."""

    defaults = {  # noqa: RUF012 (never mutated)
        **{"relative_attention": False, "pos_att_type": None, "max_relative_positions": -1, "position_buckets": -1},
        **{"share_att_key": False, "norm_rel_ebd": "none"},
    }

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        kinds = hf_config["pos_att_type"] or ()
        kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
        terms = tuple(term for term in ("c2p", "p2c") if term in (kind.strip() for kind in kinds))
        width = hf_config.get("attention_head_size") or hf_config["hidden_size"] // hf_config["num_attention_heads"]
        if not hf_config["relative_attention"]:
            scale = {"attention_scale": logit_scale(width, len(terms))} if terms else {}
            return {"head_dim": width, "disentangled": None, **scale}
        furthest, buckets = hf_config["max_relative_positions"], hf_config["position_buckets"]
        disentangled = {
            "terms": terms,
            "buckets": buckets if buckets > 0 else None,
            "max_distance": furthest if furthest > 0 else hf_config["max_position_embeddings"],
            "shared": hf_config["share_att_key"],
            "norm": "layer_norm" in hf_config["norm_rel_ebd"].lower(),
        }
        return {"head_dim": width, "disentangled": disentangled}

    def write(self, config: Any) -> dict[str, Any]:
        d = config.disentangled
        out: dict[str, Any] = {"attention_head_size": config.head_width, "relative_attention": d is not None}
        if d is None:
            count = next((n for n in (1, 2) if config.attention_scale == logit_scale(config.head_width, n)), 0)
            return {**out, "pos_att_type": ["c2p", "p2c"][:count]}
        out |= {"pos_att_type": list(d.terms), "position_buckets": d.buckets or -1, "share_att_key": d.shared}
        return {**out, "max_relative_positions": d.max_distance, "norm_rel_ebd": "layer_norm" if d.norm else "none"}


def _write_convolution(convolution: Any) -> tuple[int, str]:
    return (convolution.size, ACTIVATION.write(convolution.activation)) if convolution else (0, "tanh")


def _read_convolution(size: int, act: str) -> dict[str, Any] | None:
    return {"size": size, "activation": ACTIVATION.read(act)} if size > 0 else None


def _variant(hf_config: HFConfig, tensors: Collection[str]) -> Family:
    """Chooses between the two names of the read-out. The published version 3 has the newer name without `legacy`."""
    return NEWER if not hf_config.get("legacy", True) or f"{_NEWER_HEAD}.bias" in tensors else DEBERTA


FIELDS = (
    *TOKENS,
    *SIZES,
    NORM_EPS,
    ACT,
    _Attention(),
    Field("positions", "position_biased_input", names({False: "none", True: "learned"}), True),
    Field("token_types", "type_vocab_size", default=0),
    Field("convolution", ("conv_kernel_size", "conv_act"), Codec(_read_convolution, _write_convolution), (0, "tanh")),
    required("conv_groups", 1),
    Field(("embedding_dim", "width"), ("embedding_size", "hidden_size"), OWN_WIDTH, (None, 1536)),
    constant("embedding_map", "before_norm"),
)
_HEAD, _NEWER_HEAD = "cls.predictions", "lm_predictions.lm_head"
DEBERTA = encoder(
    "deberta-v2",
    FIELDS,
    heads("DebertaV2"),
    functools.partial(_rules, transform=f"{_HEAD}.transform", head=_HEAD),
    inputs=Inputs({"input_ids": "BT"}, {"attention_mask": "BT", "token_type_ids": "BT", "labels": "BT"}),
    defaults={**sizes(128_100, 1536, 6144, 24, 24, 512), "layer_norm_eps": 1e-7},
    model="deberta",
    prefix="deberta.",
    variant=_variant,
    ignored=(*encoder.keywords["ignored"], r"mask_predictions\.", r"embeddings\.position_embeddings\."),
    copies={f"{_HEAD}.decoder.bias": f"{_HEAD}.bias"},
)
NEWER = dataclasses.replace(
    DEBERTA,
    rules=functools.partial(_rules, transform=_NEWER_HEAD, head=_NEWER_HEAD),
    defaults={**DEBERTA.defaults, "legacy": False},
)
