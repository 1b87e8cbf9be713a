"""LLaMA, Mistral, Qwen 2 and 3, Gemma 1 and 2."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ssljax.interop.family import KEYS, Family, activation, activation_back, causal_lm, kinds_of, rotary, rotary_back
from ssljax.interop.rules import TRANSPOSE, Rule, dense, norm, readout, table

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


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    name = "hidden_activation" if theirs.get("hidden_activation") else "hidden_act"
    out: dict[str, Any] = {"activation": activation(theirs[name], name, gated=True), **rotary(theirs)}
    if not theirs.get("head_dim"):
        out["head_dim"] = theirs["hidden_size"] // theirs["num_attention_heads"]
    except_ = ["q", "k", "v", "out"] if theirs.get("attention_bias") else []
    out["bias_except"] = except_ + (["mlp"] if theirs.get("mlp_bias") else [])
    kinds = theirs.get("layer_types")
    window = theirs.get("sliding_window")
    if kinds:
        out["layer_kinds"] = kinds_of(kinds)
        out["window"] = window if "local" in out["layer_kinds"] else None
    return out


def _write(ours: Any) -> dict[str, Any]:
    kinds = [ours.layer_kinds[i % len(ours.layer_kinds)] for i in range(ours.depth)]
    return {
        "hidden_act": activation_back(ours.activation),
        "attention_bias": "q" in ours.bias_except,
        "mlp_bias": "mlp" in ours.bias_except,
        "sliding_window": ours.window if "local" in kinds else None,
        "layer_types": ["sliding_attention" if kind == "local" else "full_attention" for kind in kinds],
        **rotary_back(ours),
    }


def _mistral(theirs: Mapping[str, Any]) -> dict[str, Any]:
    window = theirs.get("sliding_window")
    return {**_read(theirs), "layer_kinds": ["local" if window else "global"], "window": window}


def _qwen2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    out = _read(theirs)
    if not theirs.get("use_sliding_window"):
        out |= {"layer_kinds": ["global"], "window": None}
    elif not theirs.get("layer_types"):  # the first layers see everything
        first = theirs.get("max_window_layers", 28)
        kinds = ["global" if i < first else "local" for i in range(theirs["num_hidden_layers"])]
        out |= {"layer_kinds": kinds, "window": theirs["sliding_window"]}
    return out | {"bias_except": ["q", "k", "v"]}


def _qwen2_back(ours: Any) -> dict[str, Any]:
    out = {**_write(ours), "use_sliding_window": "local" in ours.layer_kinds}
    del out["attention_bias"], out["mlp_bias"]
    return out


def _gemma2(theirs: Mapping[str, Any]) -> dict[str, Any]:
    out = _read({**theirs, "hidden_activation": theirs.get("hidden_activation") or "gelu_pytorch_tanh"})
    if not theirs.get("layer_types"):
        out |= {"layer_kinds": ["local", "global"], "window": theirs["sliding_window"]}
    return out | {
        "attention_scale": theirs["query_pre_attn_scalar"] ** -0.5,
        "attention_cap": theirs["attn_logit_softcapping"],
        "readout_cap": theirs["final_logit_softcapping"],
    }


def _gemma2_back(ours: Any) -> dict[str, Any]:
    scale = ours.attention_scale or ours.head_width**-0.5
    return {
        **_write(ours),
        "hidden_activation": activation_back(ours.activation),
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": ours.attention_cap,
        "final_logit_softcapping": ours.readout_cap,
    }


SAME = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
LLAMA = Family(
    model="llama",
    keys=OWN_KEYS,
    defaults={**SAME, "model_type": "llama", "max_position_embeddings": 2048},
    read=_read,
    write=_write,
    rules=rules,
    architecture="LlamaForCausalLM",
    prefix="model.",
    outputs=causal_lm,
    ignored=(r"rotary_emb\.inv_freq$",),
)
MISTRAL = dataclasses.replace(
    LLAMA,
    model="mistral",
    defaults={**SAME, "model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 4096}
    | {"max_position_embeddings": 131_072},
    read=_mistral,
    architecture="MistralForCausalLM",
)
QWEN2 = dataclasses.replace(
    LLAMA,
    model="qwen2",
    defaults={**SAME, "model_type": "qwen2", "max_position_embeddings": 32_768},
    read=_qwen2,
    write=_qwen2_back,
    architecture="Qwen2ForCausalLM",
)
QWEN3 = dataclasses.replace(
    LLAMA,
    model="qwen3",
    defaults={**SAME, "model_type": "qwen3", "max_position_embeddings": 32_768, "head_dim": 128},
    read=lambda theirs: {**_qwen2(theirs), "bias_except": _read(theirs)["bias_except"]},
    write=lambda ours: {**_write(ours), "use_sliding_window": "local" in ours.layer_kinds},
    architecture="Qwen3ForCausalLM",
)
GEMMA = dataclasses.replace(
    LLAMA,
    model="gemma",
    defaults={**SAME, "model_type": "gemma", "max_position_embeddings": 8192, "head_dim": 256}
    | {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    architecture="GemmaForCausalLM",
)
GEMMA2 = dataclasses.replace(
    GEMMA,
    model="gemma2",
    defaults={**GEMMA.defaults, "model_type": "gemma2", "sliding_window": 4096, "query_pre_attn_scalar": 256}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    read=_gemma2,
    write=_gemma2_back,
    architecture="Gemma2ForCausalLM",
)
MIXTRAL = dataclasses.replace(
    MISTRAL,
    model="mixtral",
    defaults={**MISTRAL.defaults, "model_type": "mixtral", "sliding_window": None, "router_aux_loss_coef": 0.001}
    | {"num_experts_per_tok": 2, "num_local_experts": 8},
    read=lambda theirs: {
        **_mistral(theirs),
        "experts": {"count": theirs["num_local_experts"], "top_k": theirs["num_experts_per_tok"]},
    },
    write=lambda ours: {
        **_write(ours),
        "num_local_experts": ours.experts.count,
        "num_experts_per_tok": ours.experts.top_k,
    },
    architecture="MixtralForCausalLM",
)
