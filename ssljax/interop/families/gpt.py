"""GPT-1, GPT-2 and Image GPT."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ssljax.base.errors import UserError
from ssljax.interop.family import CAUSAL_LM, Family, activation, activation_back, causal_lm
from ssljax.interop.rules import Rule, conv1d, fused, norm, readout, split, table

KEYS = {
    "vocab_size": "vocab_size",
    "max_len": "n_positions",
    "width": "n_embd",
    "depth": "n_layer",
    "heads": "n_head",
    "norm_eps": "layer_norm_epsilon",
    "tied": "tie_word_embeddings",
}


def _rules(tokens: str, positions: str, final: str | None) -> Callable[[Any], list[Rule]]:
    def rules(config: Any) -> list[Rule]:
        block, here = "transformer.h.{i}", "stack/layers"
        return [
            *table("embed", f"transformer.{tokens}"),
            *table("position_embed", f"transformer.{positions}"),
            *fused([f"{here}/attention/{name}" for name in "qkv"], f"{block}.attn.c_attn", split(3, -1)),
            *conv1d(f"{here}/attention/out", f"{block}.attn.c_proj"),
            *norm(f"{here}/attention_norm", f"{block}.ln_1"),
            *norm(f"{here}/mlp_norm", f"{block}.ln_2"),
            *conv1d(f"{here}/mlp/in", f"{block}.mlp.c_fc"),
            *conv1d(f"{here}/mlp/out", f"{block}.mlp.c_proj"),
            *(norm("stack/norm", f"transformer.{final}") if final else []),
            *readout("lm_head"),
        ]

    return rules


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "activation": activation(theirs["activation_function"], "activation_function"),
        "mlp_dim": theirs["n_inner"] or 4 * theirs["n_embd"],
        "attention_scale": None if theirs["scale_attn_weights"] else 1.0,
    }


def _write(ours: Any) -> dict[str, Any]:
    return {
        "activation_function": activation_back(ours.activation),
        "n_inner": None if ours.hidden == 4 * ours.width else ours.hidden,
        "scale_attn_weights": ours.attention_scale is None,
    }


_AFN = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}  # its gelu is the approximation


def _read1(theirs: Mapping[str, Any]) -> dict[str, Any]:
    if theirs["afn"] not in _AFN:
        raise UserError(f"config.json: afn: {theirs['afn']!r} is not supported (supported: {', '.join(_AFN)})")
    return {"activation": _AFN[theirs["afn"]]}


def _write1(ours: Any) -> dict[str, Any]:
    back = {"gelu_tanh": "gelu", "relu": "relu", "silu": "silu"}
    if ours.activation not in back:
        raise UserError(f"model.activation: {ours.activation!r} cannot be written as openai-gpt")
    return {"afn": back[ours.activation]}


SAME = {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "n_positions": 1024}
IGNORED = (r"\.attn\.(masked_)?bias$",)  # tables of the causal mask
GPT2 = Family(
    model="gpt",
    keys=KEYS,
    defaults={**SAME, "model_type": "gpt2", "activation_function": "gelu_new", "n_inner": None}
    | {"scale_attn_weights": True},
    read=_read,
    write=_write,
    rules=_rules("wte", "wpe", "ln_f"),
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    outputs=causal_lm,
    inputs=CAUSAL_LM,
    only={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ignored=IGNORED,
)
GPT1 = Family(
    model="gpt1",
    keys=KEYS,
    defaults={**SAME, "model_type": "openai-gpt", "afn": "gelu", "n_positions": 512},
    read=_read1,
    write=_write1,
    rules=_rules("tokens_embed", "positions_embed", None),
    architecture="OpenAIGPTLMHeadModel",
    prefix="transformer.",
    outputs=causal_lm,
    inputs=CAUSAL_LM,
    ignored=IGNORED,
)
IMAGE_GPT = dataclasses.replace(
    GPT2,
    model="imagegpt",
    defaults={**GPT2.defaults, "model_type": "imagegpt", "activation_function": "quick_gelu"}
    | {"tie_word_embeddings": False},
    read=lambda theirs: {**_read(theirs), "readout_size": theirs["vocab_size"] - 1},
    architecture="ImageGPTForCausalImageModeling",
)
