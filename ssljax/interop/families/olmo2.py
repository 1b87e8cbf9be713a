"""OLMo 2."""

from ssljax.interop.families.llama import ACT, ALL_GLOBAL, ATTENTION_BIAS, FIELDS, decoder
from ssljax.interop.family import causal_heads
from ssljax.interop.fields import Biases

OLMO2 = decoder(
    "olmo2",
    (*FIELDS, ACT, Biases(ATTENTION_BIAS, bias=False), *ALL_GLOBAL),
    causal_heads("Olmo2"),
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
)
