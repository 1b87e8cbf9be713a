"""Phi-3 (Abdin et al. 2024) and Phi-4, which has the same architecture."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.models.family import Preset, dims
from ssljax.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True)
class Phi3Config(LlamaConfig):
    """Phi-3 (Abdin et al. 2024): LLaMA with a sliding window of 2,047 tokens; Phi-4 (2024) is a preset without one."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, kv_heads=2, mlp_dim=352, window=64),
        "mini": dims(3072, 32, 32, mlp_dim=8192, vocab_size=32_064, max_len=4096),
        "medium": dims(5120, 40, 40, kv_heads=10, mlp_dim=17_920, vocab_size=32_064, max_len=4096),
        "4-14b": dims(
            5120,
            40,
            40,
            kv_heads=10,
            mlp_dim=17_920,
            vocab_size=100_352,
            max_len=16_384,
            rope_theta=250_000.0,
            layer_kinds=("global",),
        ),
    }

    layer_kinds: tuple[Literal["global", "local"], ...] = ("local",)
    window: int | None = setting(2047, ge=1)
