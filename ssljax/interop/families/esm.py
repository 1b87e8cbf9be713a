"""ESM-2: BERT with rotary positions and norms before the parts."""

from ssljax.interop.codecs import Codec
from ssljax.interop.families.bert import BLOCK, NORM_EPS, TOKENS, encoder, heads
from ssljax.interop.fields import SIZES, Field, constant, required
from ssljax.interop.inputs import Inputs
from ssljax.interop.rules import blocks, named, readout

# (token_dropout, mask_token_id): without the first, the mask token has an embedding.
_TOKEN_DROPOUT = Codec(lambda dropped, mask: mask if dropped else None, lambda mask: (mask is not None, mask))
FIELDS = (
    *TOKENS,
    *SIZES,
    NORM_EPS,
    constant("norm_position", "pre"),
    constant("activation", "gelu"),
    constant("positions", "none"),
    Field("rope_theta", "rope_theta", Codec(float, float), 10_000.0),
    Field("embedding_norm", "emb_layer_norm_before", Codec(bool, bool, null=True), None),
    required("position_embedding_type", "rotary", "absolute"),
    Field("zeroed_token", ("token_dropout", "mask_token_id"), _TOKEN_DROPOUT, (False, None)),
    required("is_folding_model", False),
)


ESM = encoder(
    "esm",
    FIELDS,
    heads("Esm"),
    lambda config: [
        *named({"embed": "embeddings.word_embeddings", "embed_norm": "embeddings.layer_norm"}, tensor="esm."),
        *blocks("esm.encoder.layer.{i}", {**BLOCK, "attention_norm": "attention.LayerNorm", "mlp_norm": "LayerNorm"}),
        *named({"stack/norm": "esm.encoder.emb_layer_norm_after"}),
        *named({"head_dense": "lm_head.dense", "head_norm": "lm_head.layer_norm"}),
        *readout("lm_head.decoder", "lm_head.bias"),
    ],
    inputs=Inputs({"input_ids": "BT"}, {"attention_mask": "BT", "labels": "BT"}),
    defaults={"max_position_embeddings": 1026, "pad_token_id": 0},  # padding must have some id
    model="bert",
    prefix="esm.",
    ignored=(r"inv_freq$", r"contact_head\.", r"position_(ids|embeddings\.weight)$"),
)
