"""Gemma 3 (Gemma team 2025), the decoder of text."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.layers.config import NormPosition
from ssljax.layers.positions import Linear
from ssljax.models.family import Preset, dims
from ssljax.models.llama import GemmaConfig


def _multimodal(width: int, depth: int, heads: int, kv_heads: int, mlp_dim: int, **more: object) -> Preset:
    """A preset of the decoder of a model that reads images too, for 131,072 tokens."""
    sizes = {"kv_heads": kv_heads, "mlp_dim": mlp_dim, "vocab_size": 262_208, "max_len": 131_072, "window": 1024}
    return dims(width, depth, heads, rope_scaling=Linear(8.0), **{**sizes, **more})


_TEXT = {"kv_heads": 1, "vocab_size": 262_144, "max_len": 32_768, "window": 512}


@dataclasses.dataclass(frozen=True)
class Gemma3Config(GemmaConfig):
    """Gemma 3 (Gemma team 2025): Gemma 2 with RMSNorm of q and k instead of caps, and five local layers per global one.

    Global layers have rotary positions of a larger base, and they alone are scaled to long contexts.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 6, 4, kv_heads=2, mlp_dim=352, head_dim=48, window=64),
        "270m": dims(640, 18, 4, mlp_dim=2048, **_TEXT),
        "1b": dims(1152, 26, 4, mlp_dim=6912, **_TEXT),
        "4b": _multimodal(2560, 34, 8, 4, 10_240),
        "12b": _multimodal(3840, 48, 16, 8, 15_360),
        "27b": _multimodal(5376, 62, 32, 16, 21_504, head_dim=128, attention_scale=168**-0.5),
    }

    norm_position: NormPosition = "sandwich"
    qk_norm: bool = True
    rope_theta: float | None = setting(1e6, gt=0)
    rope_theta_local: float | None = setting(10_000.0, gt=0)
    rope_scaling_local: bool = False
    layer_kinds: tuple[Literal["global", "local"], ...] = ("local",) * 5 + ("global",)
    window: int | None = setting(1024, ge=1)
