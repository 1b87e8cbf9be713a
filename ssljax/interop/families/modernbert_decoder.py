"""ModernBERT as a decoder (Ettin)."""

from typing import Any

from ssljax.interop.codecs import Codec
from ssljax.interop.families.bert import MODERNBERT, MODERNBERT_FIELDS, heads
from ssljax.interop.family import Family
from ssljax.interop.fields import Field
from ssljax.interop.outputs import CAUSAL_LM, causal_lm
from ssljax.interop.rules import Rule, blocks, fused, named, norm, readout, split

# Fields: `local_attention` is twice the number of keys that a token sees.
_TWICE = Codec(lambda both: both // 2, lambda window: 2 * (window or 1))
BLOCK = {
    **{f"attention/{name}": f"attn.{name}_proj" for name in "qkv"},
    "attention/out": "attn.Wo",
    "mlp_norm": "mlp_norm",
    "mlp/out": "mlp.Wo",
}


def _rules(config: Any) -> list[Rule]:
    block, path = "model.layers.{i}", "stack/layers"
    return [
        *named({"embed": "embeddings.tok_embeddings", "embed_norm": "embeddings.norm"}, tensor="model."),
        *(rule._replace(skip=1) for rule in norm(f"{path}/attention_norm", f"{block}.attn_norm")),
        *blocks(block, BLOCK),
        *fused([f"{path}/mlp/gate", f"{path}/mlp/in"], f"{block}.mlp.Wi", split(2, 0, True)),
        *named({"stack/norm": "model.final_norm", "head_dense": "lm_head.dense", "head_norm": "lm_head.norm"}),
        *readout("decoder"),
    ]


MODERNBERT_DECODER = Family(
    "modernbert-decoder",
    (*MODERNBERT_FIELDS, Field("window", "local_attention", _TWICE, 128)),
    heads("ModernBertDecoder", "CausalLM"),
    _rules,
    causal_lm,
    CAUSAL_LM,
    # Its configuration wants ids of special tokens that are numbers, within the vocabulary.
    defaults={**MODERNBERT.defaults, "pad_token_id": 0, "bos_token_id": 0},
    prefix="model.",
)
