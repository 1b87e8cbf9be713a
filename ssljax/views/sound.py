"""Log-mel spectrograms of sounds, and random views of them.

Sounds are float32 [B, S] in about [-1, 1], of which the first `lengths` [B] samples are not padding. Spectrograms are
float32 [B, T, F], frames by mel bands. Keys [B] come from `views.keys.example_keys`; operations accept uniform numbers
instead (`views.keys.uniforms`), except the noise.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.schema import setting
from ssljax.views.keys import between, fold_in, uniforms

FLOOR = 1.1920928955078125e-07  # smallest energy of a band, that of Kaldi: the step of float32 at 1


@dataclasses.dataclass(frozen=True)
class LogMel:
    """The log-mel spectrogram of Kaldi, as the audio spectrogram transformer reads it (Gong et al. 2021).

    A frame loses its mean, is pre-emphasised, x[n] - c x[n - 1], and multiplied with a symmetric Hann window. The
    energies |X|^2 of its discrete Fourier transform are weighted with triangles between bands at even distances in mel,
    1127 ln(1 + f / 700), and their logarithm is taken.
    """

    window: float = setting(0.025, gt=0, doc="length of a frame in seconds")
    hop: float = setting(0.01, gt=0, doc="distance between frames in seconds")
    n_fft: int | None = setting(
        None, gt=0, doc="length of the Fourier transform in samples; None: the power of two at or above the frame"
    )
    mels: int = setting(128, ge=1, doc="number of mel bands")
    fmin: float = setting(20.0, ge=0, doc="lowest frequency of the bands in hertz")
    fmax: float | None = setting(
        None, gt=0, doc="highest frequency of the bands in hertz; None: half of the sample rate"
    )
    preemphasis: float = setting(0.97, ge=0, lt=1, doc="coefficient c of the pre-emphasis; 0: none")

    def check(self, samples: int, rate: int) -> None:
        """Checks the settings against sounds of a number of samples at a rate.

        Raises:
            ValueError: they do not fit; the message begins with the key.
        """
        frame, hop, n_fft = self._sizes(rate)
        if frame < 2 or frame > samples:
            raise ValueError(f"window: got {self.window} s, {frame} samples, must be at least 2 and at most {samples}")
        if hop < 1:
            raise ValueError(f"hop: got {self.hop} s, must be at least one sample at a rate of {rate}")
        if n_fft < frame:
            raise ValueError(f"n_fft: got {self.n_fft}, must be at least the {frame} samples of a frame")
        top = rate / 2 if self.fmax is None else self.fmax
        if not self.fmin < top <= rate / 2:
            key, value = ("fmin", self.fmin) if top <= rate / 2 else ("fmax", self.fmax)
            raise ValueError(f"{key}: got {value}, must be fmin < fmax <= {rate / 2:g}, half of the sample rate")

    def shape(self, samples: int, rate: int) -> tuple[int, int]:
        """Returns (frames, bands) of sounds of a number of samples; frames lie within the sound."""
        frame, hop, _ = self._sizes(rate)
        return 1 + (samples - frame) // hop, self.mels

    def frames(self, lengths: jax.Array, rate: int) -> jax.Array:
        """Returns the number of frames that begin within the first `lengths` samples, int [B]; later ones are padding.

        It may be larger than the number of frames of a spectrogram.
        """
        return -(-lengths // self._sizes(rate)[1])

    def __call__(self, audio: jax.Array, rate: int) -> jax.Array:
        """Returns the spectrograms [B, T, F] of sounds [B, S] of `rate` samples per second."""
        frame, hop, n_fft = self._sizes(rate)
        count, _ = self.shape(audio.shape[1], rate)
        x = audio[:, np.arange(count)[:, None] * hop + np.arange(frame)]  # [B, T, W]
        x = x - jnp.mean(x, -1, keepdims=True)
        x = x - self.preemphasis * jnp.concatenate([x[..., :1], x[..., :-1]], -1)
        # A product with the transform, not an FFT, which XLA does not split over devices.
        real, imaginary = (_product(x, part) for part in _transform(frame, n_fft))
        top = rate / 2 if self.fmax is None else self.fmax
        bands = _product(real**2 + imaginary**2, mel_filters(n_fft, rate, self.mels, self.fmin, top))
        return jnp.log(jnp.maximum(bands, FLOOR))

    def _sizes(self, rate: int) -> tuple[int, int, int]:
        """Returns samples of a frame, of the distance between frames, and of the Fourier transform."""
        frame = round(self.window * rate)
        return frame, round(self.hop * rate), self.n_fft or 1 << max(frame - 1, 0).bit_length()


def _product(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    return jnp.matmul(x, jnp.asarray(matrix, jnp.float32), precision="highest")


def _transform(frame: int, n_fft: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns real and imaginary part of the windowed Fourier transform, [W, n_fft // 2 + 1] each."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / (frame - 1))
    turns = np.arange(frame)[:, None] * np.arange(n_fft // 2 + 1) % n_fft
    angle = 2 * np.pi * turns / n_fft
    return window[:, None] * np.cos(angle), -window[:, None] * np.sin(angle)


def mel_filters(n_fft: int, rate: int, mels: int, fmin: float, fmax: float) -> np.ndarray:
    """Returns the weights of the frequencies of a Fourier transform in mel bands, float64 [n_fft // 2 + 1, F].

    Band i is a triangle over the mel scale with height 1 at point i + 1 of F + 2 points at even distances from `fmin`
    to `fmax`, and 0 beyond its neighbours (as in Kaldi; without the normalisation by area of Slaney).
    """
    mel = lambda hertz: 1127 * np.log1p(np.asarray(hertz, np.float64) / 700)  # noqa: E731
    points = np.linspace(mel(fmin), mel(fmax), mels + 2)
    frequencies = mel(np.arange(n_fft // 2 + 1) * rate / n_fft)[:, None]
    left, centre, right = points[:-2], points[1:-1], points[2:]
    up, down = (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
    return np.maximum(0, np.minimum(up, down))


def random_time_crop(
    keys: jax.Array, audio: jax.Array, lengths: jax.Array, share: float
) -> tuple[jax.Array, jax.Array]:
    """Cuts a random piece out of each sound, moves it to the beginning and pads it with zeros.

    A sound of n samples is cut to round(u n) of them (at least 1), u uniform in [share, 1), beginning at a random one
    of the possible places.

    Returns:
        The pieces [B, S] and their lengths [B].
    """
    u = uniforms(keys, 2)
    size = jnp.clip(jnp.round(between(u[:, 0], share, 1.0) * lengths), 1, lengths).astype(jnp.int32)
    start = jnp.floor(u[:, 1] * (lengths - size + 1)).astype(jnp.int32)
    place = jnp.arange(audio.shape[1])
    moved = jnp.take_along_axis(audio, jnp.minimum(place + start[:, None], audio.shape[1] - 1), 1)
    return jnp.where(place < size[:, None], moved, 0.0), size


def random_gain(keys: jax.Array, audio: jax.Array, decibels: float) -> jax.Array:
    """Multiplies each sound with 10^(g / 20), g uniform in [-decibels, decibels)."""
    return audio * 10 ** (between(uniforms(keys, 1), -decibels, decibels) / 20)


def random_hiss(keys: jax.Array, audio: jax.Array, lengths: jax.Array, ratio: tuple[float, float]) -> jax.Array:
    """Adds white noise to each sound, but not to its padding.

    Args:
        keys: random keys [B].
        audio: sounds [B, S].
        lengths: samples before the padding, [B].
        ratio: bounds of the uniform ratio of the power of the sound to that of the noise, in decibels.
    """
    power = jnp.sum(audio**2, 1) / jnp.maximum(lengths, 1)
    decibels = between(uniforms(fold_in(keys, 0), 1)[:, 0], *ratio)
    scale = jnp.sqrt(power) * 10 ** (-decibels / 20)
    noise = jax.vmap(lambda key: jax.random.normal(key, audio.shape[1:]))(fold_in(keys, 1))
    return audio + jnp.where(jnp.arange(audio.shape[1]) < lengths[:, None], scale[:, None] * noise, 0.0)


def random_spectrogram_masks(
    keys: jax.Array, spectrograms: jax.Array, count: int, width: float, axis: int
) -> jax.Array:
    """Replaces random stripes of each spectrogram by its mean (Park et al. 2019, "SpecAugment").

    Args:
        keys: random keys [B].
        spectrograms: [B, T, F].
        count: number of stripes, which may overlap.
        width: a stripe is w of the n frames or bands wide, w uniform in 0, ..., floor(width n), and begins at a random
            one of the n - w + 1 possible places.
        axis: 1: stripes are frames; 2: bands.
    """
    n = spectrograms.shape[axis]
    u = uniforms(keys, 2 * count).reshape(-1, count, 2)
    size = jnp.floor(u[..., 0] * (int(width * n + 1e-6) + 1))
    start = jnp.floor(u[..., 1] * (n - size + 1))
    place = jnp.arange(n)
    hidden = jnp.any((place >= start[..., None]) & (place < (start + size)[..., None]), 1)  # [B, n]
    hidden = jnp.expand_dims(hidden, 3 - axis)
    return jnp.where(hidden, jnp.mean(spectrograms, (1, 2), keepdims=True), spectrograms)


@dataclasses.dataclass(frozen=True)
class AudioViews:
    """Two independent views of sounds, as spectrograms: a random piece, its loudness, noise, then masked stripes."""

    crop: float = setting(0.6, gt=0, le=1, doc="smallest share of a sound that a view shows; 1: all of it")
    gain: float = setting(6.0, ge=0, doc="largest change of the loudness in decibels, up or down")
    noise: tuple[float, float] | None = setting(
        (10.0, 40.0), doc="bounds of the power of the sound over that of white noise, in decibels; None: no noise"
    )
    bands: int = setting(1, ge=0, doc="number of masked stripes of mel bands (SpecAugment)")
    band_width: float = setting(0.2, ge=0, lt=1, doc="largest width of a stripe of bands, as a share of all bands")
    frames: int = setting(1, ge=0, doc="number of masked stripes of frames (SpecAugment)")
    frame_width: float = setting(0.2, ge=0, lt=1, doc="largest width of a stripe of frames, as a share of all frames")

    def validate(self) -> None:
        if self.noise is not None and self.noise[0] > self.noise[1]:
            raise ValueError(f"noise: got {self.noise}, must be a lower and an upper bound")

    def __call__(
        self, keys: jax.Array, audio: jax.Array, lengths: jax.Array, log_mel: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """Returns two views of each sound.

        Args:
            keys: random keys [B].
            audio: sounds [B, S].
            lengths: samples before the padding, [B].
            log_mel: sounds [B, S] -> spectrograms [B, T, F].

        Returns:
            Spectrograms [B, 2, T, F].
        """
        return jnp.stack([self._view(fold_in(keys, v), audio, lengths, log_mel) for v in range(2)], 1)

    def _view(
        self, keys: jax.Array, audio: jax.Array, lengths: jax.Array, log_mel: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        audio, lengths = random_time_crop(fold_in(keys, 0), audio, lengths, self.crop)
        audio = random_gain(fold_in(keys, 1), audio, self.gain)
        if self.noise is not None:
            audio = random_hiss(fold_in(keys, 2), audio, lengths, self.noise)
        x = log_mel(audio)
        if self.bands:
            x = random_spectrogram_masks(fold_in(keys, 3), x, self.bands, self.band_width, 2)
        if self.frames:
            x = random_spectrogram_masks(fold_in(keys, 4), x, self.frames, self.frame_width, 1)
        return x
