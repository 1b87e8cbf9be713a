"""Gemma 3, the decoder of text."""

from ssljax.interop.families.llama import GEMMA2_BODY, GEMMA_DEFAULTS, decoder
from ssljax.interop.family import Head
from ssljax.interop.fields import LayerKinds, required, sizes
from ssljax.interop.rotary import RotaryByKind

GEMMA3 = decoder(
    "gemma3_text",
    (
        *GEMMA2_BODY,
        required("attn_logit_softcapping", None),  # `transformers` 5.24 ignores it
        RotaryByKind("rope_theta", "rope_local_base_freq", scaled_local=False),
        LayerKinds(lambda hf_config, i: (i + 1) % hf_config["sliding_window_pattern"] == 0),
    ),
    (Head("Gemma3ForCausalLM"), Head("Gemma3TextModel")),
    defaults={
        **GEMMA_DEFAULTS,
        **sizes(262_208, 2304, 9216, 26, 8, 131_072),
        "num_key_value_heads": 4,
        "final_logit_softcapping": None,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
    },
    model="gemma3",
)
