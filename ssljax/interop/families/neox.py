"""GPT-NeoX and Pythia."""

from collections.abc import Mapping
from typing import Any

from ssljax.interop.family import CAUSAL_LM, KEYS, Family, activation, activation_back, causal_lm, rotary, rotary_back
from ssljax.interop.rules import Rule, by_head, dense, fused, norm, readout, table

OWN_KEYS = {**KEYS, "norm_eps": "layer_norm_eps"}


def rules(config: Any) -> list[Rule]:
    block, here = "gpt_neox.layers.{i}", "stack/layers"
    fuse = by_head(config.heads)
    return [
        *table("embed", "gpt_neox.embed_in"),
        *fused([f"{here}/attention/{name}" for name in "qkv"], f"{block}.attention.query_key_value", fuse),
        *dense(f"{here}/attention/out", f"{block}.attention.dense"),
        *norm(f"{here}/attention_norm", f"{block}.input_layernorm"),
        *norm(f"{here}/mlp_norm", f"{block}.post_attention_layernorm"),
        *dense(f"{here}/mlp/in", f"{block}.mlp.dense_h_to_4h"),
        *dense(f"{here}/mlp/out", f"{block}.mlp.dense_4h_to_h"),
        *norm("stack/norm", "gpt_neox.final_layer_norm"),
        *readout("embed_out"),
    ]


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    fraction = theirs.get("partial_rotary_factor") or theirs["rotary_pct"]
    theta = theirs.get("rope_theta") or theirs["rotary_emb_base"]
    return {
        **rotary({**theirs, "rope_theta": theta, "partial_rotary_factor": fraction}, partial=True),
        "activation": activation(theirs["hidden_act"], "hidden_act"),
        "norm_position": "parallel" if theirs["use_parallel_residual"] else "pre",
        "bias_except": [] if theirs["attention_bias"] else ["q", "k", "v", "out"],
    }


def _write(ours: Any) -> dict[str, Any]:
    rotation = rotary_back(ours)
    rotation["rope_parameters"]["partial_rotary_factor"] = ours.rope_fraction
    return {
        **rotation,
        "hidden_act": activation_back(ours.activation),
        "use_parallel_residual": ours.norm_position == "parallel",
        "attention_bias": "q" not in ours.bias_except,
    }


NEOX = Family(
    model="neox",
    keys=OWN_KEYS,
    defaults={
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10_000,
    },
    read=_read,
    write=_write,
    rules=rules,
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    outputs=causal_lm,
    inputs=CAUSAL_LM,
    ignored=(r"\.attention\.(masked_)?bias$", r"rotary_emb\.inv_freq$"),
)
