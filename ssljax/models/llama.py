"""LLaMA (Touvron et al. 2023) and related decoders: Mistral, Qwen, Gemma, GPT-NeoX, PaLM."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ssljax.base.schema import setting
from ssljax.layers.config import Activation, Component, NormPosition
from ssljax.layers.experts import ExpertsConfig
from ssljax.layers.positions import Llama3
from ssljax.models.family import Preset, dims
from ssljax.models.tokens import TokenConfig


def _llama3(width: int, depth: int, heads: int, mlp_dim: int, **more: Any) -> Preset:
    """A preset of LLaMA 3, with eight key and value heads."""
    more = {"max_len": 8192, "vocab_size": 128_256, "rope_theta": 5e5, **more}
    return dims(width, depth, heads, kv_heads=8, mlp_dim=mlp_dim, **more)


@dataclasses.dataclass(frozen=True)
class LlamaConfig(TokenConfig):
    """LLaMA 1 to 3 (Touvron et al. 2023, Dubey et al. 2024): RMSNorm, SwiGLU, rotary positions, no biases.

    The names of presets of versions 2 and 3 begin with the version: "2-7b", "3.1-8b".
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, mlp_dim=352),
        "7b": dims(4096, 32, 32, mlp_dim=11_008, vocab_size=32_000, max_len=2048, norm_eps=1e-6),
        "13b": dims(5120, 40, 40, mlp_dim=13_824, vocab_size=32_000, max_len=2048, norm_eps=1e-6),
        "33b": dims(6656, 60, 52, mlp_dim=17_920, vocab_size=32_000, max_len=2048, norm_eps=1e-6),
        "65b": dims(8192, 80, 64, mlp_dim=22_016, vocab_size=32_000, max_len=2048),
        "2-7b": dims(4096, 32, 32, mlp_dim=11_008, vocab_size=32_000, max_len=4096),
        "2-13b": dims(5120, 40, 40, mlp_dim=13_824, vocab_size=32_000, max_len=4096),
        "2-70b": dims(8192, 80, 64, kv_heads=8, mlp_dim=28_672, vocab_size=32_000, max_len=4096),
        "3-8b": _llama3(4096, 32, 32, 14_336),
        "3-70b": _llama3(8192, 80, 64, 28_672),
        "3.1-8b": _llama3(4096, 32, 32, 14_336, rope_scaling=Llama3(8.0), max_len=131_072),
        "3.1-70b": _llama3(8192, 80, 64, 28_672, rope_scaling=Llama3(8.0), max_len=131_072),
        "3.1-405b": _llama3(16_384, 126, 128, 53_248, rope_scaling=Llama3(8.0), max_len=131_072),
        "3.2-1b": _llama3(2048, 16, 32, 8192, rope_scaling=Llama3(32.0), max_len=131_072, tied=True),
        "3.2-3b": _llama3(3072, 28, 24, 8192, rope_scaling=Llama3(32.0), max_len=131_072, tied=True),
    }

    preset: str | None = "micro"
    norm: Literal["layer", "rms", "rms_plus_one"] = "rms"
    norm_eps: float = setting(1e-5, gt=0)
    activation: Activation = "swiglu"
    bias: bool = False
    positions: Literal["learned", "sinusoidal", "none"] = "none"
    rope_theta: float | None = setting(10_000.0, gt=0)
    init: Literal["xavier", "normal", "gpt2"] = "normal"
    tied: bool = False
    pool: Literal["first", "last", "mean"] = "last"


@dataclasses.dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """Mistral 7B (Jiang et al. 2023): LLaMA with grouped-query attention and a sliding window of 4,096 tokens."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, kv_heads=2, mlp_dim=352, window=64),
        "7b": dims(4096, 32, 32, kv_heads=8, mlp_dim=14_336, vocab_size=32_000, max_len=32_768),
    }

    layer_kinds: tuple[Literal["global", "local"], ...] = ("local",)
    window: int | None = setting(4096, ge=1)


@dataclasses.dataclass(frozen=True)
class MixtralConfig(LlamaConfig):
    """Mixtral (Jiang et al. 2024): Mistral with two of eight experts per token, without the sliding window."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, kv_heads=2, mlp_dim=352),
        "8x7b": dims(4096, 32, 32, kv_heads=8, mlp_dim=14_336, vocab_size=32_000, max_len=32_768),
        "8x22b": dims(6144, 56, 48, kv_heads=8, mlp_dim=16_384, vocab_size=32_768, max_len=65_536),
    }

    rope_theta: float | None = setting(1e6, gt=0)
    experts: ExpertsConfig | None = ExpertsConfig()


@dataclasses.dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """Qwen 2 and 2.5 (Yang et al. 2024): LLaMA with grouped-query attention and biases of q, k and v."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, kv_heads=2, mlp_dim=352),
        "0.5b": dims(896, 24, 14, kv_heads=2, mlp_dim=4864, vocab_size=151_936, max_len=32_768, tied=True),
        "1.5b": dims(1536, 28, 12, kv_heads=2, mlp_dim=8960, vocab_size=151_936, max_len=32_768, tied=True),
        "7b": dims(3584, 28, 28, kv_heads=4, mlp_dim=18_944, vocab_size=152_064, max_len=32_768),
        "72b": dims(8192, 80, 64, kv_heads=8, mlp_dim=29_568, vocab_size=152_064, max_len=32_768),
        "2.5-3b": dims(2048, 36, 16, kv_heads=2, mlp_dim=11_008, vocab_size=151_936, max_len=32_768, tied=True),
        "2.5-14b": dims(5120, 48, 40, kv_heads=8, mlp_dim=13_824, vocab_size=152_064, max_len=131_072),
        "2.5-32b": dims(5120, 64, 40, kv_heads=8, mlp_dim=27_648, vocab_size=152_064, max_len=131_072),
    }

    norm_eps: float = setting(1e-6, gt=0)
    rope_theta: float | None = setting(1e6, gt=0)
    bias_except: tuple[Component, ...] = ("q", "k", "v")


@dataclasses.dataclass(frozen=True)
class Qwen3Config(LlamaConfig):
    """Qwen 3 (Yang et al. 2025): LLaMA with grouped-query attention, heads of width 128, and RMSNorm of q and k."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, kv_heads=2, mlp_dim=352, head_dim=48),
        "0.6b": dims(1024, 28, 16, kv_heads=8, mlp_dim=3072, vocab_size=151_936, max_len=40_960, tied=True),
        "1.7b": dims(2048, 28, 16, kv_heads=8, mlp_dim=6144, vocab_size=151_936, max_len=40_960, tied=True),
        "4b": dims(2560, 36, 32, kv_heads=8, mlp_dim=9728, vocab_size=151_936, max_len=40_960, tied=True),
        "8b": dims(4096, 36, 32, kv_heads=8, mlp_dim=12_288, vocab_size=151_936, max_len=40_960),
        "14b": dims(5120, 40, 40, kv_heads=8, mlp_dim=17_408, vocab_size=151_936, max_len=40_960),
        "32b": dims(5120, 64, 64, kv_heads=8, mlp_dim=25_600, vocab_size=151_936, max_len=40_960),
    }

    norm_eps: float = setting(1e-6, gt=0)
    rope_theta: float | None = setting(1e6, gt=0)
    head_dim: int | None = setting(128, ge=1)
    qk_norm: bool = True


@dataclasses.dataclass(frozen=True)
class GemmaConfig(LlamaConfig):
    """Gemma (Gemma team 2024): GeGLU, heads of width 256, scaled and tied embeddings, norms that scale by 1 + w."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, kv_heads=1, mlp_dim=352, head_dim=48),
        "2b": dims(2048, 18, 8, kv_heads=1, mlp_dim=16_384, vocab_size=256_000, max_len=8192),
        "7b": dims(3072, 28, 16, mlp_dim=24_576, vocab_size=256_000, max_len=8192),
    }

    norm: Literal["layer", "rms", "rms_plus_one"] = "rms_plus_one"
    norm_eps: float = setting(1e-6, gt=0)
    activation: Activation = "geglu_tanh"
    head_dim: int | None = setting(256, ge=1)
    embedding_scale: bool = True
    tied: bool = True


@dataclasses.dataclass(frozen=True)
class Gemma2Config(GemmaConfig):
    """Gemma 2 (Gemma team 2024): sandwich norms, alternating local and global layers, soft-capped logits."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, kv_heads=2, mlp_dim=352, head_dim=48, window=64),
        "2b": dims(2304, 26, 8, kv_heads=4, mlp_dim=9216, vocab_size=256_000, max_len=8192),
        "9b": dims(3584, 42, 16, kv_heads=8, mlp_dim=14_336, vocab_size=256_000, max_len=8192),
        "27b": dims(
            4608,
            46,
            32,
            kv_heads=16,
            mlp_dim=36_864,
            head_dim=128,
            attention_scale=144**-0.5,
            vocab_size=256_000,
            max_len=8192,
        ),
    }

    norm_position: NormPosition = "sandwich"
    attention_cap: float | None = setting(50.0, gt=0)
    readout_cap: float | None = setting(30.0, gt=0)
    layer_kinds: tuple[Literal["global", "local"], ...] = ("local", "global")
    window: int | None = setting(4096, ge=1)


@dataclasses.dataclass(frozen=True)
class NeoXConfig(LlamaConfig):
    """GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023): attention and feed-forward part in parallel,
    rotary positions on a quarter of each head."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4),
        "pythia-70m": dims(512, 6, 8, vocab_size=50_304, max_len=2048),
        "pythia-160m": dims(768, 12, 12, vocab_size=50_304, max_len=2048),
        "pythia-410m": dims(1024, 24, 16, vocab_size=50_304, max_len=2048),
        "pythia-1b": dims(2048, 16, 8, vocab_size=50_304, max_len=2048),
        "pythia-1.4b": dims(2048, 24, 16, vocab_size=50_304, max_len=2048),
        "pythia-2.8b": dims(2560, 32, 32, vocab_size=50_304, max_len=2048),
        "pythia-6.9b": dims(4096, 32, 32, vocab_size=50_432, max_len=2048),
        "pythia-12b": dims(5120, 36, 40, vocab_size=50_688, max_len=2048),
        "20b": dims(6144, 44, 64, vocab_size=50_432, max_len=2048),
    }

    norm: Literal["layer", "rms", "rms_plus_one"] = "layer"
    norm_position: NormPosition = "parallel"
    activation: Activation = "gelu"
    bias: bool = True
    rope_fraction: float = setting(0.25, gt=0, le=1)


@dataclasses.dataclass(frozen=True)
class PaLMConfig(LlamaConfig):
    """PaLM (Chowdhery et al. 2022): parallel branches that share one norm, multi-query attention, SwiGLU, no biases."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "micro": dims(128, 4, 4, mlp_dim=512),
        "8b": dims(4096, 32, 16, mlp_dim=16_384, vocab_size=256_000, max_len=2048),
        "62b": dims(8192, 64, 32, mlp_dim=32_768, vocab_size=256_000, max_len=2048),
        "540b": dims(18_432, 118, 48, mlp_dim=73_728, vocab_size=256_000, max_len=2048),
    }

    norm: Literal["layer", "rms", "rms_plus_one"] = "layer"
    norm_position: NormPosition = "parallel_one"
    bias_except: tuple[Component, ...] = ()
    kv_heads: int | None = setting(1, ge=1)
    head_dim: int | None = setting(256, ge=1)
    tied: bool = True
