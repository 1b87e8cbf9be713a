"""GPT-1, GPT-2 and Image GPT."""

import functools
from typing import Any

from ssljax.interop.codecs import ACTIVATION, OR_NONE, Codec, names
from ssljax.interop.family import Family, Head
from ssljax.interop.fields import Field, counts, required
from ssljax.interop.outputs import CAUSAL_LM, causal_lm
from ssljax.interop.rules import COPY, Rule, dense, fused, named, readout, split

_SCALED = Codec(lambda scaled: None if scaled else 1.0, lambda scale: scale != 1)
# The last id is the start token, which is not predicted.
_SHIFTED = Codec(lambda ids: (ids, ids - 1), lambda ids, predicted: ids)
FIELDS = (
    *counts(vocab_size=("vocab_size", 50_257), max_len=("n_positions", 1024), width=("n_embd", 768)),
    *counts(depth=("n_layer", 12), heads=("n_head", 12)),
    Field("norm_eps", "layer_norm_epsilon", default=1e-5),
    Field("tied", "tie_word_embeddings", default=True),
)
GPT2_FIELDS = (
    *FIELDS,
    Field("activation", "activation_function", ACTIVATION, "gelu_new"),
    Field("mlp_dim", "n_inner", OR_NONE, None),  # null: 4 times the width
    Field("attention_scale", "scale_attn_weights", _SCALED, True),
    Field("scaled_by_layer", "scale_attn_by_inverse_layer_idx", Codec(bool, bool), False),
    required("add_cross_attention", False),
)
# The "gelu" of GPT-1 is the approximation.
GPT1_ACTIVATION = names({"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"})


def _rules(config: Any, ends: dict[str, str]) -> list[Rule]:
    block, path = "transformer.h.{i}", "stack/layers"
    return [
        *named({**ends, f"{path}/attention_norm": "h.{i}.ln_1", f"{path}/mlp_norm": "h.{i}.ln_2"}, "", "transformer."),
        *fused([f"{path}/attention/{name}" for name in "qkv"], f"{block}.attn.c_attn", split(3, -1)),
        # The linear maps are "Conv1D", whose matrices are [in, out].
        *dense(f"{path}/attention/out", f"{block}.attn.c_proj", COPY),
        *dense(f"{path}/mlp/in", f"{block}.mlp.c_fc", COPY),
        *dense(f"{path}/mlp/out", f"{block}.mlp.c_proj", COPY),
        *readout("lm_head"),
    ]


_GPT1_RULES = functools.partial(_rules, ends={"embed": "tokens_embed", "position_embed": "positions_embed"})
_GPT2_RULES = functools.partial(_rules, ends={"embed": "wte", "position_embed": "wpe", "stack/norm": "ln_f"})
_gpt = functools.partial(
    Family,
    outputs=causal_lm,
    inputs=CAUSAL_LM,
    prefix="transformer.",
    ignored=(r"\.attn\.(masked_)?bias$",),  # tables of the causal mask
)
GPT1 = _gpt(
    "openai-gpt",
    (*FIELDS, Field("activation", "afn", GPT1_ACTIVATION, "gelu")),
    (Head("OpenAIGPTLMHeadModel"), Head("OpenAIGPTModel")),
    _GPT1_RULES,
    defaults={"vocab_size": 40_478, "n_positions": 512},
    model="gpt1",
)
GPT2 = _gpt("gpt2", GPT2_FIELDS, (Head("GPT2LMHeadModel"), Head("GPT2Model")), _GPT2_RULES, model="gpt")
IMAGE_GPT = _gpt(
    "imagegpt",
    (*GPT2_FIELDS, Field(("vocab_size", "readout_size"), "vocab_size", _SHIFTED)),
    (Head("ImageGPTForCausalImageModeling"), Head("ImageGPTModel")),
    _GPT2_RULES,
    defaults={"activation_function": "quick_gelu", "tie_word_embeddings": False}
    | {"vocab_size": 513, "n_embd": 512, "n_layer": 24, "n_head": 8},
)
