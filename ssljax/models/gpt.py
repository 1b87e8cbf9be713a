"""GPT-1, 2 and 3 (Radford et al. 2018, 2019; Brown et al. 2020), Megatron-LM, OPT and Image GPT."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.layers.config import Activation, NormPosition
from ssljax.models.family import Preset, dims
from ssljax.models.tokens import TokenConfig


@dataclasses.dataclass(frozen=True)
class GPTConfig(TokenConfig):
    """GPT-2 (Radford et al. 2019): pre-norm blocks, learned positions, tied read-out.

    Megatron-LM (Shoeybi et al. 2019) is a larger GPT-2 with a vocabulary padded to 51,200. Turing-NLG (Rosset 2020) is
    another larger GPT-2; its vocabulary is assumed to be GPT-2's.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4),
        "mini": dims(256, 6, 8),
        "gpt2": dims(768, 12, 12, vocab_size=50_257, max_len=1024),
        "gpt2-medium": dims(1024, 24, 16, vocab_size=50_257, max_len=1024),
        "gpt2-large": dims(1280, 36, 20, vocab_size=50_257, max_len=1024),
        "gpt2-xl": dims(1600, 48, 25, vocab_size=50_257, max_len=1024),
        "megatron-1.2b": dims(1536, 40, 16, vocab_size=51_200, max_len=1024),
        "megatron-2.5b": dims(1920, 54, 20, vocab_size=51_200, max_len=1024),
        "megatron-4.2b": dims(2304, 64, 24, vocab_size=51_200, max_len=1024),
        "megatron-8.3b": dims(3072, 72, 32, vocab_size=51_200, max_len=1024),
        "turing-nlg-17b": dims(4256, 78, 28, vocab_size=50_257, max_len=1024),
    }

    preset: str | None = "micro"
    norm_eps: float = setting(1e-5, gt=0)
    activation: Activation = "gelu_tanh"
    init: Literal["xavier", "normal", "gpt2"] = "gpt2"


@dataclasses.dataclass(frozen=True)
class GPT1Config(GPTConfig):
    """GPT-1 (Radford et al. 2018): post-norm blocks, no final norm."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4),
        "gpt1": dims(768, 12, 12, vocab_size=40_478, max_len=512),
    }

    norm_position: NormPosition = "post"
    init: Literal["xavier", "normal", "gpt2"] = "normal"


@dataclasses.dataclass(frozen=True)
class GPT3Config(GPTConfig):
    """GPT-3 (Brown et al. 2020): GPT-2 with local attention in every second layer; dimensions of table 2.1.

    The paper does not give the width of the local band; the default of `window` is our choice. The table prints a width
    of 5140 for 13B, probably a misprint of 5120 = 40 heads x 128. It gives batch sizes in tokens and learning rates:
    0.5M and 6e-4 (125m), 0.5M and 3e-4 (350m), 0.5M and 2.5e-4 (760m), 1M and 2e-4 (1.3b), 1M and 1.6e-4 (2.7b), 2M and
    1.2e-4 (6.7b), 2M and 1e-4 (13b), 3.2M and 0.6e-4 (175b).
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4),
        "125m": dims(768, 12, 12, head_dim=64, vocab_size=50_257, max_len=2048),
        "350m": dims(1024, 24, 16, head_dim=64, vocab_size=50_257, max_len=2048),
        "760m": dims(1536, 24, 16, head_dim=96, vocab_size=50_257, max_len=2048),
        "1.3b": dims(2048, 24, 24, head_dim=128, vocab_size=50_257, max_len=2048),
        "2.7b": dims(2560, 32, 32, head_dim=80, vocab_size=50_257, max_len=2048),
        "6.7b": dims(4096, 32, 32, head_dim=128, vocab_size=50_257, max_len=2048),
        "13b": dims(5120, 40, 40, head_dim=128, vocab_size=50_257, max_len=2048),
        "175b": dims(12_288, 96, 96, head_dim=128, vocab_size=50_257, max_len=2048),
    }

    layer_kinds: tuple[Literal["global", "local"], ...] = ("global", "local")
    window: int | None = setting(256, ge=1)


_NARROW = {"norm_position": "post", "embedding_dim": 512, "embedding_map": "tokens"}


@dataclasses.dataclass(frozen=True)
class OPTConfig(GPTConfig):
    """OPT (Zhang et al. 2022): GPT-3 with ReLU and global attention; position 0 is row 2 of the position table."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4),
        "125m": dims(768, 12, 12, vocab_size=50_272, max_len=2048),
        "350m": dims(1024, 24, 16, vocab_size=50_272, max_len=2048, **_NARROW),
        "1.3b": dims(2048, 24, 32, vocab_size=50_272, max_len=2048),
        "2.7b": dims(2560, 32, 32, vocab_size=50_272, max_len=2048),
        "6.7b": dims(4096, 32, 32, vocab_size=50_272, max_len=2048),
        "13b": dims(5120, 40, 40, vocab_size=50_272, max_len=2048),
        "30b": dims(7168, 48, 56, vocab_size=50_272, max_len=2048),
        "66b": dims(9216, 64, 72, vocab_size=50_272, max_len=2048),
        "175b": dims(12_288, 96, 96, vocab_size=50_272, max_len=2048),
    }

    activation: Activation = "relu"
    position_offset: int = setting(2, ge=0)


@dataclasses.dataclass(frozen=True)
class ImageGPTConfig(GPTConfig):
    """Image GPT (Chen et al. 2020): GPT-2 over colour clusters, with RMSNorm; untied read-out without the start id."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4),
        "small": dims(512, 24, 8, vocab_size=513, max_len=1024, readout_size=512),
        "medium": dims(1024, 36, 8, vocab_size=513, max_len=1024, readout_size=512),
        "large": dims(1536, 48, 16, vocab_size=513, max_len=1024, readout_size=512),
    }

    norm: Literal["layer", "rms", "rms_plus_one"] = "rms"
    activation: Activation = "quick_gelu"
    tied: bool = False
