"""Phi-3 and Phi-4."""

from typing import Any

from ssljax.interop.families.llama import ACT, BLOCK, BODY, ENDS, WINDOW_OF_ALL, decoder
from ssljax.interop.family import causal_heads
from ssljax.interop.fields import sizes
from ssljax.interop.rotary import LONGROPE, Rotary
from ssljax.interop.rules import Rule, blocks, fused, named, readout, split

_SEPARATE = ("attention/out", "attention_norm", "mlp_norm", "mlp/out")


def _rules(config: Any) -> list[Rule]:
    block, path = "model.layers.{i}", "stack/layers"
    queries, keys = config.heads * config.head_width, config.groups * config.head_width
    qkv = split((queries, queries + keys), 0, True)
    return [
        *named(ENDS),
        *blocks(block, {name: BLOCK[name] for name in _SEPARATE}),
        *fused([f"{path}/attention/{name}" for name in "qkv"], f"{block}.self_attn.qkv_proj", qkv),
        *fused([f"{path}/mlp/gate", f"{path}/mlp/in"], f"{block}.mlp.gate_up_proj", split(2, 0, True)),
        *readout("lm_head"),
    ]


PHI3 = decoder(
    "phi3",
    (*BODY, Rotary(partial=True, scalings=LONGROPE), ACT, WINDOW_OF_ALL),
    causal_heads("Phi3"),
    rules=_rules,
    defaults={**sizes(32_064, 3072, 8192, 32, 32, 4096), "rms_norm_eps": 1e-5, "sliding_window": None}
    | {"original_max_position_embeddings": 4096},
)
