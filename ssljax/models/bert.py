"""BERT (Devlin et al. 2019) and the encoders derived from it."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from ssljax.base.schema import fixed, setting
from ssljax.layers.config import Activation, NormPosition
from ssljax.models.family import Preset, PublishedCount, dims
from ssljax.models.tokens import TokenConfig

BARE = {"readout_transform": False, "readout_bias": False}
_WITH_POOLER = {**BARE, "extras": ("pooler",)}
_UNCASED = {"vocab_size": 30_522, "max_len": 512}  # the uncased vocabulary of BERT


@dataclasses.dataclass(frozen=True)
class BertConfig(TokenConfig):
    """BERT (Devlin et al. 2019): post-norm blocks, learned positions, a dense transform before the tied read-out.

    `token_types=2` gives embeddings for pairs of sentences.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": dims(128, 2, 2),
        "mini": dims(256, 4, 4),
        "small": dims(512, 4, 8),
        "medium": dims(512, 8, 8),
        "base": dims(768, 12, 12, token_types=2, **_UNCASED),
        "large": dims(1024, 24, 16, token_types=2, **_UNCASED),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount(_WITH_POOLER)

    preset: str | None = "tiny"
    norm_position: NormPosition = "post"
    norm_eps: float = setting(1e-12, gt=0)
    init: Literal["xavier", "normal", "gpt2"] = "normal"
    embedding_norm: bool = True
    readout_transform: bool = True
    readout_bias: bool = True


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """RoBERTa (Liu et al. 2019): BERT with one token type; position 0 is row 2 of the position table."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": dims(128, 2, 2),
        "base": dims(768, 12, 12, vocab_size=50_265, max_len=512),
        "large": dims(1024, 24, 16, vocab_size=50_265, max_len=512),
    }

    norm_eps: float = setting(1e-5, gt=0)
    token_types: int = setting(1, ge=0)
    position_offset: int = setting(2, ge=0)
    readout_activation: Activation | None = "gelu"


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """DistilBERT (Sanh et al. 2019): BERT with half the depth and without token types."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": dims(128, 2, 2),
        "base": dims(768, 6, 12, **_UNCASED),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount(BARE)


@dataclasses.dataclass(frozen=True)
class AlbertConfig(BertConfig):
    """ALBERT (Lan et al. 2020): blocks applied `repeats` times, narrow embeddings; `depth` counts distinct blocks."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": dims(128, 1, 2, repeats=2, embedding_dim=64),
        "base": dims(768, 1, 12, repeats=12, vocab_size=30_000, max_len=512),
        "large": dims(1024, 1, 16, repeats=24, vocab_size=30_000, max_len=512),
        "xlarge": dims(2048, 1, 16, repeats=24, vocab_size=30_000, max_len=512),
        "xxlarge": dims(4096, 1, 64, repeats=12, vocab_size=30_000, max_len=512),
    }

    activation: Activation = "gelu_tanh"
    token_types: int = setting(2, ge=0)
    embedding_dim: int | None = setting(128, ge=1)
    repeats: int = setting(1, ge=1, doc="number of consecutive applications of each group of blocks")
    group: int = setting(1, ge=1, doc="number of consecutive blocks in a group; it must divide `depth`")


@dataclasses.dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """ELECTRA (Clark et al. 2020): BERT with a separate embedding width. The generator is a smaller instance."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": dims(128, 2, 2, embedding_dim=64),
        "small": dims(256, 12, 4, embedding_dim=128, mlp_dim=1024, **_UNCASED),
        "base": dims(768, 12, 12, **_UNCASED),
        "large": dims(1024, 24, 16, **_UNCASED),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount(BARE)

    token_types: int = setting(2, ge=0)
    readout_activation: Activation | None = "gelu"


@dataclasses.dataclass(frozen=True)
class ModernBertConfig(BertConfig):
    """ModernBERT (Warner et al. 2024): pre-norm blocks, GeGLU, rotary positions, every third layer global."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": dims(128, 3, 2, window=17),
        "base": dims(768, 22, 12, mlp_dim=1152, vocab_size=50_368, max_len=8192),
        "large": dims(1024, 28, 16, mlp_dim=2624, vocab_size=50_368, max_len=8192),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount(BARE)

    norm_position: NormPosition = "pre"
    first_norm: bool = fixed(False)
    norm_eps: float = setting(1e-5, gt=0)
    bias: bool = False
    activation: Activation = "geglu"
    positions: Literal["learned", "sinusoidal", "none"] = "none"
    rope_theta: float | None = setting(160_000.0, gt=0)
    rope_theta_local: float | None = setting(10_000.0, gt=0)
    layer_kinds: tuple[Literal["global", "local"], ...] = ("global", "local", "local")
    window: int | None = setting(65, ge=1)  # 64 tokens on each side
    readout_activation: Activation | None = "gelu"


@dataclasses.dataclass(frozen=True)
class ModernBertDecoderConfig(ModernBertConfig):
    """ModernBERT as a decoder (Weller et al. 2025, Ettin): the same blocks for causal attention."""

    presets: ClassVar[Mapping[str, Preset]] = {"tiny": dims(128, 3, 2, window=16)}

    window: int | None = setting(64, ge=1)
    pool: Literal["first", "last", "mean"] = "last"
