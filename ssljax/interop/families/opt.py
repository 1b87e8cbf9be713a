"""OPT."""

from collections.abc import Mapping
from typing import Any

from ssljax.interop.family import CAUSAL_LM, KEYS, Family, activation, activation_back, causal_lm
from ssljax.interop.rules import Rule, dense, norm, readout, table

OWN_KEYS = {**KEYS, "mlp_dim": "ffn_dim", "bias": "enable_bias"}


def rules(config: Any) -> list[Rule]:
    inner, here = "model.decoder", "stack/layers"
    block = f"{inner}.layers.{{i}}"
    projections = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
    return [
        *table("embed", f"{inner}.embed_tokens"),
        *table("position_embed", f"{inner}.embed_positions"),
        *dense("embed_project", f"{inner}.project_in"),
        *dense("readout_project", f"{inner}.project_out"),
        *(rule for n, t in projections.items() for rule in dense(f"{here}/attention/{n}", f"{block}.self_attn.{t}")),
        *norm(f"{here}/attention_norm", f"{block}.self_attn_layer_norm"),
        *norm(f"{here}/mlp_norm", f"{block}.final_layer_norm"),
        *dense(f"{here}/mlp/in", f"{block}.fc1"),
        *dense(f"{here}/mlp/out", f"{block}.fc2"),
        *norm("stack/norm", f"{inner}.final_layer_norm"),
        *readout("lm_head"),
    ]


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    before, narrow = theirs["do_layer_norm_before"], theirs["word_embed_proj_dim"]
    return {
        "activation": activation(theirs["activation_function"], "activation_function"),
        "norm_position": "pre" if before else "post",
        "embedding_dim": None if narrow == theirs["hidden_size"] else narrow,
        "embedding_map": "tokens",
        "final_norm": before and not theirs["_remove_final_layer_norm"],
        "bias_except": [] if theirs["enable_bias"] else ["norm"],
    }


def _write(ours: Any) -> dict[str, Any]:
    return {
        "activation_function": activation_back(ours.activation),
        "do_layer_norm_before": ours.norm_position == "pre",
        "_remove_final_layer_norm": ours.norm_position == "pre" and not ours.final_norm,
        "word_embed_proj_dim": ours.embedding_dim or ours.width,
    }


OPT = Family(
    model="opt",
    keys=OWN_KEYS,
    defaults={
        "model_type": "opt",
        "activation_function": "relu",
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "word_embed_proj_dim": None,
        "enable_bias": True,
        "tie_word_embeddings": True,
    },
    read=_read,
    write=_write,
    rules=rules,
    architecture="OPTForCausalLM",
    prefix="model.",
    outputs=causal_lm,
    inputs=CAUSAL_LM,
    only={"layer_norm_elementwise_affine": True},
)
