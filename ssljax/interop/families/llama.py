"""LLaMA, Mistral, Qwen 2 and 3, Gemma 1 and 2."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ssljax.interop.family import (
    CAUSAL_LM,
    KEYS,
    Family,
    activation,
    activation_back,
    causal_lm,
    kinds_back,
    kinds_of,
    rotary,
    rotary_back,
)
from ssljax.interop.rules import TRANSPOSE, Rule, dense, norm, readout, table
from ssljax.layers.experts import ExpertsConfig

OWN_KEYS = {**KEYS, "kv_heads": "num_key_value_heads", "head_dim": "head_dim", "norm_eps": "rms_norm_eps"}


def rules(config: Any) -> list[Rule]:
    block, here = "model.layers.{i}", "stack/layers"
    projections = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    sandwich = config.norm_position == "sandwich"
    return [
        *table("embed", "model.embed_tokens"),
        *(rule for n, t in projections.items() for rule in dense(f"{here}/attention/{n}", f"{block}.self_attn.{t}")),
        *norm(f"{here}/attention/q_norm", f"{block}.self_attn.q_norm"),
        *norm(f"{here}/attention/k_norm", f"{block}.self_attn.k_norm"),
        *norm(f"{here}/attention_norm", f"{block}.input_layernorm"),
        *norm(f"{here}/attention_norm_after", f"{block}.post_attention_layernorm"),
        *norm(f"{here}/mlp_norm", f"{block}.{'pre_feedforward' if sandwich else 'post_attention'}_layernorm"),
        *norm(f"{here}/mlp_norm_after", f"{block}.post_feedforward_layernorm"),
        *dense(f"{here}/mlp/gate", f"{block}.mlp.gate_proj"),
        *dense(f"{here}/mlp/in", f"{block}.mlp.up_proj"),
        *dense(f"{here}/mlp/out", f"{block}.mlp.down_proj"),
        Rule((f"{here}/mlp/router",), f"{block}.block_sparse_moe.gate.weight", TRANSPOSE),
        *(
            Rule((f"{here}/mlp/{name}",), f"{block}.block_sparse_moe.experts.{{e}}.{w}.weight", TRANSPOSE)
            for name, w in (("gate", "w1"), ("out", "w2"), ("in", "w3"))
        ),
        *norm("stack/norm", "model.norm"),
        *readout("lm_head"),
    ]


def _read(theirs: Mapping[str, Any], *biases: str) -> dict[str, Any]:
    """What all have; `biases` are the keys of theirs that may ask for some."""
    parts = {"attention_bias": ["q", "k", "v", "out"], "mlp_bias": ["mlp"]}
    return {
        **rotary(theirs),
        "activation": activation(theirs["hidden_act"], "hidden_act", gated=True),
        "head_dim": theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"],
        "bias_except": [part for key in biases if theirs[key] for part in parts[key]],
        "layer_kinds": ["global"],
        "window": None,
    }


def _write(ours: Any) -> dict[str, Any]:
    return {**rotary_back(ours), "hidden_act": activation_back(ours.activation)}


def _write_biases(ours: Any) -> dict[str, Any]:
    return {**_write(ours), "attention_bias": "q" in ours.bias_except, "mlp_bias": "mlp" in ours.bias_except}


def _windows_back(ours: Any) -> dict[str, Any]:
    return {"sliding_window": ours.window, "layer_types": kinds_back(ours)}


def _mistral(theirs: Mapping[str, Any]) -> dict[str, Any]:
    window = theirs["sliding_window"]
    return {**_read(theirs), "layer_kinds": ["local" if window else "global"], "window": window}


def _mistral_back(ours: Any) -> dict[str, Any]:
    return {**_write(ours), "sliding_window": ours.window if "local" in ours.layer_kinds else None}


def _qwen(theirs: Mapping[str, Any], *biases: str) -> dict[str, Any]:
    window = theirs["sliding_window"] if theirs["use_sliding_window"] else None
    kinds = theirs["layer_types"]
    if not kinds:  # the first layers see everything
        far = theirs["num_hidden_layers"] if window is None else theirs["max_window_layers"]
        kinds = ["full_attention" if i < far else "sliding_attention" for i in range(theirs["num_hidden_layers"])]
    return {**_read(theirs, *biases), "layer_kinds": kinds_of(kinds), "window": window}


def _qwen_back(ours: Any) -> dict[str, Any]:
    return {**_write(ours), **_windows_back(ours), "use_sliding_window": "local" in ours.layer_kinds}


def _gemma(theirs: Mapping[str, Any]) -> dict[str, Any]:
    exact = theirs["hidden_act"] == "gelu"  # as the first files say, who mean its approximation
    return _read({**theirs, "hidden_act": "gelu_pytorch_tanh" if exact else theirs["hidden_act"]}, "attention_bias")


def _gemma2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    layers = range(theirs["num_hidden_layers"])
    kinds = theirs["layer_types"] or ["full_attention" if i % 2 else "sliding_attention" for i in layers]
    return {
        **_read({**theirs, "hidden_act": theirs["hidden_activation"]}, "attention_bias"),
        "layer_kinds": kinds_of(kinds),
        "window": theirs["sliding_window"],
        "attention_scale": theirs["query_pre_attn_scalar"] ** -0.5,
        "attention_cap": theirs["attn_logit_softcapping"],
        "readout_cap": theirs["final_logit_softcapping"],
    }


def _gemma2_back(ours: Any) -> dict[str, Any]:
    scale = ours.attention_scale or ours.head_width**-0.5
    return {
        **_write_biases(ours),
        **_windows_back(ours),
        "hidden_activation": activation_back(ours.activation),
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": ours.attention_cap,
        "final_logit_softcapping": ours.readout_cap,
    }


SAME = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False}
LLAMA = Family(
    model="llama",
    keys=OWN_KEYS,
    defaults={**SAME, "model_type": "llama", "max_position_embeddings": 2048, "mlp_bias": False},
    read=lambda theirs: _read(theirs, "attention_bias", "mlp_bias"),
    write=_write_biases,
    rules=rules,
    architecture="LlamaForCausalLM",
    prefix="model.",
    outputs=causal_lm,
    inputs=CAUSAL_LM,
    ignored=(r"rotary_emb\.inv_freq$",),
)
MISTRAL = dataclasses.replace(
    LLAMA,
    model="mistral",
    defaults={**SAME, "model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 4096}
    | {"max_position_embeddings": 131_072},
    read=_mistral,
    write=_mistral_back,
    architecture="MistralForCausalLM",
)
QWEN2 = dataclasses.replace(
    LLAMA,
    model="qwen2",
    defaults={**SAME, "model_type": "qwen2", "max_position_embeddings": 32_768, "num_key_value_heads": 32}
    | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None},
    read=lambda theirs: {**_qwen(theirs), "bias_except": ["q", "k", "v"]},
    write=_qwen_back,
    architecture="Qwen2ForCausalLM",
)
QWEN3 = dataclasses.replace(
    QWEN2,
    model="qwen3",
    defaults={**QWEN2.defaults, "model_type": "qwen3", "head_dim": 128},
    read=lambda theirs: _qwen(theirs, "attention_bias"),
    write=lambda ours: {**_qwen_back(ours), "attention_bias": "q" in ours.bias_except},
    architecture="Qwen3ForCausalLM",
)
GEMMA = dataclasses.replace(
    LLAMA,
    model="gemma",
    defaults={**SAME, "model_type": "gemma", "max_position_embeddings": 8192, "head_dim": 256}
    | {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 16},
    read=_gemma,
    write=_write_biases,
    architecture="GemmaForCausalLM",
    only={"use_bidirectional_attention": False},
)
GEMMA2 = dataclasses.replace(
    GEMMA,
    model="gemma2",
    defaults={**GEMMA.defaults, "model_type": "gemma2", "sliding_window": 4096, "query_pre_attn_scalar": 256}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh"}
    | {"num_key_value_heads": 4, "layer_types": None},
    read=_gemma2,
    write=_gemma2_back,
    architecture="Gemma2ForCausalLM",
)
MIXTRAL = dataclasses.replace(
    MISTRAL,
    model="mixtral",
    defaults={**MISTRAL.defaults, "model_type": "mixtral", "sliding_window": None, "router_aux_loss_coef": 0.001}
    | {
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "router_aux_loss_coef": 0.001,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    read=lambda theirs: {
        **_mistral(theirs),
        "experts": {
            "count": theirs["num_local_experts"],
            "top_k": theirs["num_experts_per_tok"],
            "balance": theirs["router_aux_loss_coef"],
        },
    },
    write=lambda ours: {
        **_mistral_back(ours),
        "num_local_experts": (ours.experts or ExpertsConfig()).count,
        "num_experts_per_tok": (ours.experts or ExpertsConfig()).top_k,
        "router_aux_loss_coef": (ours.experts or ExpertsConfig()).balance,
    },
    architecture="MixtralForCausalLM",
)
