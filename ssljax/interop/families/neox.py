"""GPT-NeoX and Pythia."""

from ssljax.interop.codecs import ACTIVATION, names
from ssljax.interop.family import Family, causal_heads
from ssljax.interop.fields import SIZES, Biases, Field, counts, sizes
from ssljax.interop.outputs import CAUSAL_LM, causal_lm
from ssljax.interop.rotary import Rotary
from ssljax.interop.rules import blocks, by_head, fused, named, readout

FIELDS = (
    *counts(vocab_size="vocab_size", max_len=("max_position_embeddings", 2048)),
    *SIZES,
    Field("tied", "tie_word_embeddings", default=False),
    Field("norm_eps", "layer_norm_eps", default=1e-5),
    Rotary(True, ("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")),
    Field("activation", "hidden_act", ACTIVATION, "gelu"),
    Field("norm_position", "use_parallel_residual", names({False: "pre", True: "parallel"}), True),
    Biases({"attention_bias": ("q", "k", "v", "out")}, bias=True),
)
BLOCK = {
    "attention/out": "attention.dense",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp/in": "mlp.dense_h_to_4h",
    "mlp/out": "mlp.dense_4h_to_h",
}
PROJECTIONS = [f"stack/layers/attention/{name}" for name in "qkv"]

NEOX = Family(
    "gpt_neox",
    FIELDS,
    causal_heads("GPTNeoX"),
    lambda config: [
        *named({"embed": "gpt_neox.embed_in", "stack/norm": "gpt_neox.final_layer_norm"}),
        *fused(PROJECTIONS, "gpt_neox.layers.{i}.attention.query_key_value", by_head(config.heads)),
        *blocks("gpt_neox.layers.{i}", BLOCK),
        *readout("embed_out"),
    ],
    causal_lm,
    CAUSAL_LM,
    defaults={**sizes(50_432, 6144, 24_576, 44, 64, 2048), "rotary_pct": 0.25, "rotary_emb_base": 10_000},
    model="neox",
    prefix="gpt_neox.",
    ignored=(r"\.attention\.(masked_)?bias$", r"rotary_emb\.inv_freq$"),
)
