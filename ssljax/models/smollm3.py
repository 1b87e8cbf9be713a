"""SmolLM 3 (Bakouch et al. 2025)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from ssljax.base.schema import setting
from ssljax.models.family import Preset, dims
from ssljax.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True)
class SmolLM3Config(LlamaConfig):
    """SmolLM 3 (Bakouch et al. 2025): LLaMA with grouped-query attention; every fourth layer has no rotary positions
    (Yang et al. 2025, "RoPE to NoPE and back again")."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, kv_heads=2, mlp_dim=352),
        "3b": dims(2048, 36, 16, kv_heads=4, mlp_dim=11_008, vocab_size=128_256, max_len=65_536),
    }

    norm_eps: float = setting(1e-6, gt=0)
    rope_theta: float | None = setting(5e6, gt=0)
    rope_layers: tuple[bool, ...] = (True, True, True, False)
    tied: bool = True
