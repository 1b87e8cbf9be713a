"""DeBERTa v2 and v3 (He et al. 2021, "DeBERTa"; He, Gao, Chen 2023, "DeBERTaV3")."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.layers.sequence_conv import ConvolutionConfig
from ssljax.layers.terms.disentangled import DisentangledConfig
from ssljax.models.bert import BARE, BertConfig
from ssljax.models.family import Preset, PublishedCount, dims

_SHARED = {"vocab_size": 128_100, "max_len": 512}


@dataclasses.dataclass(frozen=True)
class DebertaConfig(BertConfig):
    """DeBERTa (He et al. 2021, 2023): BERT with disentangled attention and without absolute positions.

    Version 2 adds a convolution parallel to the first block. Version 3 is trained with ELECTRA's objective.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": dims(128, 2, 2),
        "v2-xlarge": dims(1536, 24, 24, convolution=ConvolutionConfig(), **_SHARED),
        "v2-xxlarge": dims(1536, 48, 24, convolution=ConvolutionConfig(), **_SHARED),
        "v3-xsmall": dims(384, 12, 6, **_SHARED),
        "v3-small": dims(768, 6, 12, **_SHARED),
        "v3-base": dims(768, 12, 12, **_SHARED),
        "v3-large": dims(1024, 24, 16, **_SHARED),
    }

    published_count: ClassVar[PublishedCount] = PublishedCount(BARE)

    norm_eps: float = setting(1e-7, gt=0)
    positions: Literal["learned", "sinusoidal", "none"] = "none"
    disentangled: DisentangledConfig | None = DisentangledConfig()
