"""GPT-2 (Radford et al. 2019): pre-norm, learned positions, tied read-out.

LLaMA-like (Touvron 2023): `norm="rms", activation="swiglu", rope_theta=10000, positions="none", bias=False`.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.models.tokens import TokenConfig


@dataclasses.dataclass(frozen=True)
class GPTConfig(TokenConfig):
    """GPT-2 and its kin."""

    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "micro": (128, 4, 4),
        "mini": (256, 6, 8),
        "gpt2": (768, 12, 12),
        "gpt2-medium": (1024, 24, 16),
        "gpt2-large": (1280, 36, 20),
        "gpt2-xl": (1600, 48, 25),
    }

    size: str | None = "micro"
    norm_eps: float = setting(1e-5, gt=0)
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu", "geglu"] = "gelu_tanh"
    init: Literal["xavier", "normal", "gpt2"] = "gpt2"
