"""Variants of the vision transformer: DeiT, BEiT, I-JEPA, DINOv2, DINOv3, and AST for spectrograms."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.base.schema import fixed, setting
from ssljax.layers.config import Component
from ssljax.layers.terms.registry import PositionBias
from ssljax.models.family import Encoded, Preset, PublishedCount, dims, element_shape
from ssljax.models.vit import PHOTO, ViT, ViTConfig
from ssljax.views.sound import LogMel


@dataclasses.dataclass(frozen=True)
class DeiTConfig(ViTConfig):
    """DeiT (Touvron et al. 2021): a ViT with a distillation token next to the class token."""

    presets: ClassVar[Mapping[str, Preset]] = {
        name: preset for name, preset in ViTConfig.presets.items() if name not in ("large", "huge")
    }
    published_count: ClassVar[PublishedCount] = PublishedCount(classes=2000)  # two heads of 1000 classes

    distillation: bool = fixed(True)


@dataclasses.dataclass(frozen=True)
class BEiTConfig(ViTConfig):
    """BEiT (Bao et al. 2022): a ViT with learned biases for distances of patches, LayerScale, and keys without bias."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 2, 2),
        "base": dims(768, 12, 12, image_shape=PHOTO),
        "large": dims(1024, 24, 16, layer_scale=1e-5, image_shape=PHOTO),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount(
        {"mask_token": False, "layer_bias": True, "norm_after_pool": True}, classes=1000
    )

    preset: str | None = "base"
    pool: Literal["cls", "mean", "map"] = "mean"
    class_token: bool | None = fixed(True)
    positions: Literal["learned", "sincos", "none"] = "none"
    position_bias: PositionBias = "grid"
    bias_except: tuple[Component, ...] = fixed(("k",))
    layer_bias: bool = setting(
        False, doc="one table of position biases per layer (fine-tuned weights); false: one for all (pretraining)"
    )
    norm_after_pool: bool = setting(
        False, doc="apply the final norm to the pooled vector (fine-tuned weights); false: to the tokens (pretraining)"
    )
    layer_scale: float | None = setting(0.1, gt=0)
    mask_token: bool = True


@dataclasses.dataclass(frozen=True)
class IJEPAConfig(ViTConfig):
    """The encoder of I-JEPA (Assran et al. 2023): a ViT without class token."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 2, 2),
        "base": dims(768, 12, 12, image_shape=PHOTO),
        "huge": dims(1280, 32, 16, patch_size=14, image_shape=PHOTO),
        "giant": dims(1408, 40, 16, mlp_dim=6144, image_shape=PHOTO),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount()

    preset: str | None = "base"
    pool: Literal["cls", "mean", "map"] = "mean"


@dataclasses.dataclass(frozen=True)
class DINOv2Config(ViTConfig):
    """DINOv2 (Oquab et al. 2024): a ViT with patches of 14 pixels, LayerScale and a mask token.

    `registers=4` gives the models of Darcet et al. 2024.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 2, 2),
        "small": dims(384, 12, 6, image_shape=(518, 518, 3)),
        "base": dims(768, 12, 12, image_shape=(518, 518, 3)),
        "large": dims(1024, 24, 16, image_shape=(518, 518, 3)),
        "giant": dims(1536, 40, 24, activation="swiglu", mlp_dim=4096, image_shape=(518, 518, 3)),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount()

    preset: str | None = "base"
    patch_size: int = setting(14, ge=1)
    layer_scale: float | None = setting(1.0, gt=0)
    mask_token: bool = True

    @property
    def antialias(self) -> bool:
        return self.registers > 0  # as in the training of the published models with registers


@dataclasses.dataclass(frozen=True)
class DINOv3Config(ViTConfig):
    """DINOv3 (Siméoni et al. 2025): a ViT with rotary positions by row and column, and 4 registers."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 2, 2),
        "small": dims(384, 12, 6, image_shape=PHOTO),
        "small_plus": dims(384, 12, 6, activation="swiglu", mlp_dim=1536, image_shape=PHOTO),
        "base": dims(768, 12, 12, image_shape=PHOTO),
        "large": dims(1024, 24, 16, image_shape=PHOTO),
        "huge_plus": dims(1280, 32, 20, activation="swiglu", mlp_dim=5120, image_shape=PHOTO),
        "7b": dims(4096, 40, 32, activation="swiglu", mlp_dim=8192, bias_except=("q", "k", "v"), image_shape=PHOTO),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount()

    preset: str | None = "base"
    positions: Literal["learned", "sincos", "none"] = "none"
    rope_theta: float | None = setting(100.0, gt=0)
    registers: int = setting(4, ge=0)
    bias_except: tuple[Component, ...] = fixed(("k",))
    norm_eps: float = setting(1e-5, gt=0)
    layer_scale: float | None = setting(1.0, gt=0)
    mask_token: bool = True


@dataclasses.dataclass(frozen=True)
class ASTConfig(ViTConfig):
    """Audio spectrogram transformer (Gong et al. 2021): DeiT on a spectrogram with overlapping patches."""

    inputs: ClassVar[str] = "spectrograms"
    presets: ClassVar[Mapping[str, Preset]] = {
        "pico": dims(64, 2, 2),
        "base": dims(768, 12, 12, image_shape=(128, 1024, 1)),
    }
    published_count: ClassVar[PublishedCount] = PublishedCount({"classes": 527, "heads_on": ("norm",)})

    preset: str | None = "base"
    norm_eps: float = setting(1e-12, gt=0)
    distillation: bool = fixed(True)
    strides: tuple[int, int] = setting(
        (10, 10), ge=1, doc="distance between patches along frequency and along time, in bins and frames"
    )
    spectrogram: LogMel = setting(
        LogMel(), doc="the spectrogram that is computed of sounds; not read if the data have spectrograms"
    )
    sample_rate: int | None = fixed(None, doc="samples per second of the sounds; None: the data have spectrograms")

    @property
    def stride(self) -> tuple[int, int]:
        return self.strides

    def fit_to(self, spec: Any, path: str) -> Self:
        """Returns a copy with preset values and the shape [time, frequency] of the data's spectrograms filled in.

        Raises:
            UserError: the data have neither spectrograms nor sounds, or `spectrogram` does not fit the sounds.
        """
        full, rate = self.with_preset(), None
        if "audio" in spec.elements and "spectrogram" not in spec.elements:
            (samples,), rate = spec.elements["audio"]["shape"], spec.sample_rate
            try:
                full.spectrogram.check(samples, rate)
            except ValueError as error:
                raise UserError(f"{path}.spectrogram.{error}") from error
            time, frequency = full.spectrogram.shape(samples, rate)
        else:
            time, frequency = element_shape(spec, "spectrogram", f"{path}.name")
        if min(time, frequency) < full.patch_size:
            raise UserError(
                f"{path}.patch_size: got {full.patch_size}, must be at most the {time} frames and the {frequency} bands"
                " of a spectrogram"
            )
        return dataclasses.replace(full, image_shape=(frequency, time, 1), sample_rate=rate)

    def module(self, spec: Any, path: str = "model") -> "AST":
        """The encoder for the spectrograms of `spec`."""
        return AST(self.fit_to(spec, path), path)

    def standalone(self) -> "AST":
        return AST(self.with_preset())


class AST(ViT):
    """An encoder of spectrograms [B, time, frequency] to patch tokens (frequency-major) and a pooled vector."""

    config: ASTConfig

    def __call__(self, spectrograms: jax.Array, **keywords: Any) -> Encoded:  # type: ignore[override]
        """Encodes spectrograms [B, time, frequency], or their images (`as_images`); keywords as in `ViT`."""
        images = spectrograms if spectrograms.ndim == 4 else self.as_images(spectrograms)
        return super().__call__(images, **keywords)

    @staticmethod
    def as_images(spectrograms: jax.Array) -> jax.Array:
        """Returns spectrograms [B, time, frequency] as images [B, frequency, time, 1]."""
        return jnp.swapaxes(spectrograms, 1, 2)[..., None]

    def log_mel(self, audio: jax.Array) -> jax.Array:
        """Returns the spectrograms [B, time, frequency] of sounds [B, S]."""
        assert self.config.sample_rate is not None
        return self.config.spectrogram(audio, self.config.sample_rate)

    def frames(self, lengths: jax.Array) -> jax.Array:
        """Returns the number of frames that begin within sounds of int [B] samples, int [B]."""
        assert self.config.sample_rate is not None
        return self.config.spectrogram.frames(lengths, self.config.sample_rate)

    def initial(self, key: jax.Array) -> Any:
        frequency, time, _ = self.image_shape
        return self.init(key, jnp.zeros((1, time, frequency)), method="init_all")
