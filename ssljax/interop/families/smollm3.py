"""SmolLM 3."""

from typing import Any

from ssljax.base.errors import UserError
from ssljax.interop.codecs import Codec
from ssljax.interop.families.llama import ACT, ATTENTION_BIAS, FIELDS, decoder
from ssljax.interop.family import causal_heads
from ssljax.interop.fields import Biases, Declaration, Field, HFConfig, LayerKinds, shortest_period, sizes


class RotaryLayers(Declaration):
    """`rope_layers` as `no_rope_layers`, one entry a layer (1: with rotary positions), or at an interval."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("rope_layers",)

    @property
    def defaults(self) -> HFConfig:
        return {"no_rope_layers": None, "no_rope_layer_interval": 4}

    def read(self, hf_config: HFConfig) -> dict[str, Any]:
        return {"rope_layers": shortest_period(_rotates(hf_config))}

    def write(self, config: Any) -> dict[str, Any]:
        rotates = config.rope_layers
        return {"no_rope_layers": [int(rotates[i % len(rotates)]) for i in range(config.depth)]}


def _rotates(hf_config: HFConfig) -> list[bool]:
    """Returns for each layer if it has rotary positions."""
    depth, stated, interval = (
        hf_config[key] for key in ("num_hidden_layers", "no_rope_layers", "no_rope_layer_interval")
    )
    if stated is None:
        if interval < 1:
            raise UserError(f"no_rope_layer_interval: got {interval}, must be at least 1")
        return [(i + 1) % interval != 0 for i in range(depth)]
    if len(stated) < depth:
        raise UserError(f"no_rope_layers: got {len(stated)} values, must be at least the {depth} layers")
    return [bool(each) for each in stated[:depth]]


def _is_full(hf_config: HFConfig, i: int) -> bool:
    windowed = hf_config["use_sliding_window"] and hf_config["sliding_window"] is not None
    return not windowed or _rotates(hf_config)[i]


# Layers whose type is stated have the window even if it is switched off.
_WINDOW = Codec(lambda window, used: window, lambda window: (window, window is not None), null=True)
SMOLLM3 = decoder(
    "smollm3",
    (
        *FIELDS,
        ACT,
        Biases({**ATTENTION_BIAS, "mlp_bias": ("mlp",)}, bias=False),
        RotaryLayers(),
        Field("window", ("sliding_window", "use_sliding_window"), _WINDOW, (None, False)),
        LayerKinds(_is_full),
    ),
    causal_heads("SmolLM3"),
    defaults={
        **sizes(128_256, 2048, 11_008, 36, 16, 32_768),
        "num_key_value_heads": 4,
        "sliding_window": None,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
    },
)
