"""Qwen 3 with experts (Yang et al. 2025)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from ssljax.layers.experts import ExpertsConfig
from ssljax.models.family import Preset, dims
from ssljax.models.llama import Qwen3Config


def _experts(mlp_dim: int, count: int = 128, top_k: int = 8) -> ExpertsConfig:
    return ExpertsConfig(count, top_k, mlp_dim=mlp_dim, balance=0.001)


@dataclasses.dataclass(frozen=True)
class Qwen3MoEConfig(Qwen3Config):
    """Qwen 3 with experts (Yang et al. 2025): Qwen 3 with 8 of 128 narrow experts per token in every block.

    The preset "micro", and a model without a preset, have 2 of 8 experts per token. In blocks without experts
    (`experts.every`) the feed-forward part has the width `mlp_dim`.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, kv_heads=2, mlp_dim=352, head_dim=48, experts=_experts(88, 8, 2)),
        "30b-a3b": dims(
            2048, 48, 32, kv_heads=4, mlp_dim=6144, experts=_experts(768), vocab_size=151_936, max_len=40_960
        ),
        "235b-a22b": dims(
            4096, 94, 64, kv_heads=4, mlp_dim=12_288, experts=_experts(1536), vocab_size=151_936, max_len=40_960
        ),
    }

    experts: ExpertsConfig | None = ExpertsConfig(8, 2, balance=0.001)
