"""LLaMA, Mistral, Mixtral, Qwen 2 and 3, Gemma 1 and 2."""

import functools
from typing import Any

from ssljax.interop.codecs import COUNT, GATED, GATED_ACTIVATION, OR_NONE, Codec, names
from ssljax.interop.family import Family, causal_heads
from ssljax.interop.fields import SIZES, Biases, Field, LayerKinds, constant, counts, required, sizes
from ssljax.interop.outputs import CAUSAL_LM, causal_lm
from ssljax.interop.rotary import Rotary
from ssljax.interop.rules import TRANSPOSE, Rule, blocks, copy, named, norm, readout
from ssljax.layers.experts import ExpertsConfig

BODY = (
    *counts(vocab_size="vocab_size", max_len="max_position_embeddings"),
    Field("kv_heads", "num_key_value_heads", COUNT._replace(null=True)),  # null: one per head
    *SIZES,
    Field("head_dim", "head_dim", OR_NONE, None),  # null: width / heads
    Field("tied", "tie_word_embeddings", default=False),
    Field("norm_eps", "rms_norm_eps", default=1e-6),
)
FIELDS = (*BODY, Rotary())
ACT = Field("activation", "hidden_act", GATED_ACTIVATION, "silu")
ATTENTION_BIAS = {"attention_bias": ("q", "k", "v", "out")}
ALL_GLOBAL = (constant("layer_kinds", ("global",)), constant("window", None))
# One window for all layers, or none.
_WINDOW_OF_ALL = Codec(
    lambda window: (("local" if window else "global",), window),
    lambda kinds, window: window if "local" in kinds else None,
    null=True,
)
WINDOW_OF_ALL = Field(("layer_kinds", "window"), "sliding_window", _WINDOW_OF_ALL, 4096)
# (window, switch): the window is used only if it is switched on.
_SWITCHED = Codec(lambda window, used: window if used else None, lambda window: (window, window is not None), null=True)


def _is_full_in_qwen(hf_config: Any, i: int) -> bool:
    """Returns True for the first layers, and for all layers without a window."""
    windowed = hf_config["use_sliding_window"] and hf_config["sliding_window"] is not None
    return not windowed or i < hf_config["max_window_layers"]


SWITCHED_WINDOW = Field("window", ("sliding_window", "use_sliding_window"), _SWITCHED, (4096, False))
WINDOW_OF_SOME = (SWITCHED_WINDOW, LayerKinds(_is_full_in_qwen))
_EXPERTS = Codec(
    lambda count, top_k, balance: {"count": count, "top_k": top_k, "balance": balance},
    lambda experts: tuple(getattr(experts or ExpertsConfig(), name) for name in ("count", "top_k", "balance")),
)
EXPERTS = Field(
    "experts", ("num_local_experts", "num_experts_per_tok", "router_aux_loss_coef"), _EXPERTS, (8, 2, 0.001)
)
# In the first files of Gemma "gelu" means its approximation.
_GEMMA_ACTIVATION = names({"gelu_pytorch_tanh": "geglu_tanh", **GATED, "gelu": "geglu_tanh"})
GEMMA_BODY = (*BODY, Biases(ATTENTION_BIAS, bias=False), required("use_bidirectional_attention", False))
GEMMA2_BODY = (
    *GEMMA_BODY,
    Field("activation", "hidden_activation", GATED_ACTIVATION, "gelu_pytorch_tanh"),
    Field("window", "sliding_window", OR_NONE, 4096),
    Field("attention_scale", "query_pre_attn_scalar", Codec(lambda n: n**-0.5, lambda scale: round(scale**-2)), 256),
    Field("readout_cap", "final_logit_softcapping", OR_NONE, 30.0),
)
ENDS = {"embed": "model.embed_tokens", "stack/norm": "model.norm"}
BLOCK = {
    **{f"attention/{name}": f"self_attn.{name}_proj" for name in "qkv"},
    "attention/out": "self_attn.o_proj",
    "attention/q_norm": "self_attn.q_norm",
    "attention/k_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp/gate": "mlp.gate_proj",
    "mlp/in": "mlp.up_proj",
    "mlp/out": "mlp.down_proj",
}


def rules(config: Any) -> list[Rule]:
    block, path = "model.layers.{i}", "stack/layers"
    sandwich = {"mlp_norm": "pre_feedforward_layernorm"} if config.norm_position == "sandwich" else {}
    experts = {"gate": "w1", "out": "w2", "in": "w3"}
    return [
        *named(ENDS),
        *blocks(block, BLOCK | sandwich),
        *norm(f"{path}/attention_norm_after", f"{block}.post_attention_layernorm"),
        *norm(f"{path}/mlp_norm_after", f"{block}.post_feedforward_layernorm"),
        *copy(f"{path}/mlp/router", f"{block}.block_sparse_moe.gate.weight", TRANSPOSE),
        *(
            Rule((f"{path}/mlp/{name}",), f"{block}.block_sparse_moe.experts.{{e}}.{tensor}.weight", TRANSPOSE)
            for name, tensor in experts.items()
        ),
        *readout("lm_head"),
    ]


decoder = functools.partial(
    Family, rules=rules, outputs=causal_lm, inputs=CAUSAL_LM, prefix="model.", ignored=(r"rotary_emb\.inv_freq$",)
)
LLAMA = decoder(
    "llama",
    (*FIELDS, ACT, Biases({**ATTENTION_BIAS, "mlp_bias": ("mlp",)}, bias=False), *ALL_GLOBAL),
    causal_heads("Llama"),
    defaults=sizes(32_000, 4096, 11_008, 32, 32, 2048),
)
_MISTRAL = {**sizes(32_000, 4096, 14_336, 32, 32, 131_072), "num_key_value_heads": 8}
MISTRAL = decoder(
    "mistral",
    (*FIELDS, ACT, WINDOW_OF_ALL),
    causal_heads("Mistral"),
    defaults=_MISTRAL,
)
MIXTRAL = decoder(
    "mixtral",
    (*FIELDS, ACT, WINDOW_OF_ALL, EXPERTS),
    causal_heads("Mixtral"),
    defaults={**_MISTRAL, "sliding_window": None, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
)
_QWEN = {**sizes(151_936, 4096, 22_016, 32, 32, 32_768), "num_key_value_heads": 32, "max_window_layers": 28}
QWEN2 = decoder(
    "qwen2",
    (*FIELDS, ACT, *WINDOW_OF_SOME, constant("bias_except", ("q", "k", "v"))),
    causal_heads("Qwen2"),
    defaults=_QWEN,
)
QWEN3 = decoder(
    "qwen3",
    (*FIELDS, ACT, *WINDOW_OF_SOME, Biases(ATTENTION_BIAS, bias=False)),
    causal_heads("Qwen3"),
    defaults={**_QWEN, "head_dim": 128},
)
GEMMA_DEFAULTS = {"head_dim": 256, "tie_word_embeddings": True}
GEMMA = decoder(
    "gemma",
    (*GEMMA_BODY, Rotary(), Field("activation", "hidden_act", _GEMMA_ACTIVATION, "gelu_pytorch_tanh"), *ALL_GLOBAL),
    causal_heads("Gemma"),
    defaults={**GEMMA_DEFAULTS, **sizes(256_000, 3072, 24_576, 28, 16, 8192), "num_key_value_heads": 16},
)
GEMMA2 = decoder(
    "gemma2",
    (
        *GEMMA2_BODY,
        Field("attention_cap", "attn_logit_softcapping", OR_NONE, 50.0),
        Rotary(),
        LayerKinds(lambda hf_config, i: i % 2 == 1),
    ),
    causal_heads("Gemma2"),
    defaults={**GEMMA_DEFAULTS, **sizes(256_000, 2304, 9216, 26, 8, 8192), "num_key_value_heads": 4},
)
