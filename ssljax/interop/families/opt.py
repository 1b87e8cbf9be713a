"""OPT."""

from ssljax.interop.codecs import ACTIVATION, OWN_WIDTH, Codec
from ssljax.interop.family import Family, causal_heads
from ssljax.interop.fields import SIZES, Field, constant, counts, required
from ssljax.interop.outputs import CAUSAL_LM, causal_lm
from ssljax.interop.rules import blocks, named, readout

# (do_layer_norm_before, _remove_final_layer_norm) <-> (norm_position, final_norm).
_NORMS = Codec(
    lambda before, removed: ("pre" if before else "post", before and not removed),
    lambda position, final: (position == "pre", position == "pre" and not final),
)
_BIAS = Codec(lambda on: (on, () if on else ("norm",)), lambda bias, parts: bias)
FIELDS = (
    *counts(vocab_size=("vocab_size", 50_272), max_len=("max_position_embeddings", 2048), mlp_dim=("ffn_dim", 3072)),
    *SIZES[:3],
    Field("tied", "tie_word_embeddings", default=True),
    Field("activation", "activation_function", ACTIVATION, "relu"),
    Field(("norm_position", "final_norm"), ("do_layer_norm_before", "_remove_final_layer_norm"), _NORMS, (True, False)),
    Field(("embedding_dim", "width"), ("word_embed_proj_dim", "hidden_size"), OWN_WIDTH, (None, 768)),
    constant("embedding_map", "tokens"),
    Field(("bias", "bias_except"), "enable_bias", _BIAS, True),
    required("layer_norm_elementwise_affine", True),
)
BLOCK = {f"attention/{name}": f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")}
BLOCK |= {"attention_norm": "self_attn_layer_norm", "mlp/in": "fc1", "mlp/out": "fc2", "mlp_norm": "final_layer_norm"}
_ENDS = {
    "embed": "embed_tokens",
    "position_embed": "embed_positions",
    "embed_project": "project_in",
    "readout_project": "project_out",
    "stack/norm": "final_layer_norm",
}


OPT = Family(
    "opt",
    FIELDS,
    causal_heads("OPT"),
    lambda config: [
        *named(_ENDS, tensor="model.decoder."),
        *blocks("model.decoder.layers.{i}", BLOCK),
        *readout("lm_head"),
    ],
    causal_lm,
    CAUSAL_LM,
    prefix="model.",
)
