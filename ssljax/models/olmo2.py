"""OLMo 2 (OLMo team 2025)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.layers.config import NormPosition
from ssljax.models.family import Preset, dims
from ssljax.models.llama import LlamaConfig

_VOCABULARY = {"vocab_size": 100_352, "max_len": 4096}


@dataclasses.dataclass(frozen=True)
class OLMo2Config(LlamaConfig):
    """OLMo 2 (OLMo team 2025): LLaMA with norms after attention and feed-forward part, and RMSNorm of q and k over all
    heads."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, mlp_dim=352),
        "1b": dims(2048, 16, 16, mlp_dim=8192, **_VOCABULARY),
        "7b": dims(4096, 32, 32, mlp_dim=11_008, **_VOCABULARY),
        "13b": dims(5120, 40, 40, mlp_dim=13_824, **_VOCABULARY),
        "32b": dims(5120, 64, 40, kv_heads=8, mlp_dim=27_648, **_VOCABULARY),
    }

    norm_position: NormPosition = "after"
    norm_eps: float = setting(1e-6, gt=0)
    qk_norm: bool = True
    qk_norm_over: Literal["head", "projection"] = "projection"
    rope_theta: float | None = setting(500_000.0, gt=0)
