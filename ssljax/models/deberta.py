"""DeBERTa v2 and v3 (He et al. 2021, "DeBERTa"; He, Gao, Chen 2023, "DeBERTaV3")."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.layers.conv1d import ConvolutionConfig
from ssljax.layers.disentangled import DisentangledConfig
from ssljax.models.bert import BARE, BertConfig
from ssljax.models.family import Published, Size, preset

_SHARED = {"vocab_size": 128_100, "max_len": 512}


@dataclasses.dataclass(frozen=True)
class DebertaConfig(BertConfig):
    """DeBERTa: BERT with disentangled attention and no absolute positions. Version 2 has a convolution beside its
    first block; version 3 is trained as ELECTRA is."""

    presets: ClassVar[Mapping[str, Size]] = {
        "tiny": preset(128, 2, 2),
        "v2-xlarge": preset(1536, 24, 24, convolution=ConvolutionConfig(), **_SHARED),
        "v2-xxlarge": preset(1536, 48, 24, convolution=ConvolutionConfig(), **_SHARED),
        "v3-xsmall": preset(384, 12, 6, **_SHARED),
        "v3-small": preset(768, 6, 12, **_SHARED),
        "v3-base": preset(768, 12, 12, **_SHARED),
        "v3-large": preset(1024, 24, 16, **_SHARED),
    }

    published: ClassVar[Published] = Published(BARE)

    norm_eps: float = setting(1e-7, gt=0)
    positions: Literal["learned", "sinusoidal", "none"] = "none"
    disentangled: DisentangledConfig | None = DisentangledConfig()
