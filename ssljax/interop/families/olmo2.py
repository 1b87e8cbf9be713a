"""OLMo 2."""

from ssljax.interop.families.llama import ACT, ALL_GLOBAL, ATTENTION_BIAS, FIELDS, decoder
from ssljax.interop.family import causal_heads
from ssljax.interop.fields import Biases, sizes

OLMO2 = decoder(
    "olmo2",
    (*FIELDS, ACT, Biases(ATTENTION_BIAS, bias=False), *ALL_GLOBAL),
    causal_heads("Olmo2"),
    defaults={**sizes(50_304, 4096, 11_008, 32, 32, 2048), "rms_norm_eps": 1e-5},
)
