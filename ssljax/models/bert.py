"""BERT (Devlin et al. 2019): post-norm, learned positions, GELU, a transform before the tied read-out."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.models.tokens import TokenConfig


@dataclasses.dataclass(frozen=True)
class BertConfig(TokenConfig):
    """BERT; `token_types=2` for pairs of sentences. The tanh pooler of the paper belongs to an objective."""

    presets: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "tiny": (128, 2, 2),
        "mini": (256, 4, 4),
        "small": (512, 4, 8),
        "medium": (512, 8, 8),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
    }

    size: str | None = "tiny"
    norm_position: Literal["pre", "post"] = "post"
    norm_eps: float = setting(1e-12, gt=0)
    init: Literal["xavier", "normal", "gpt2"] = "normal"
    embedding_norm: bool = True
    readout_transform: bool = True
