"""Columns of sounds as float32 arrays [N, S]: decoded once into a file of the cache, or at each use by threads.

A sound becomes a clip of S = `clip_seconds` * `sample_rate` samples in about [-1, 1]: its channels are averaged, it is
resampled if its file has another rate, and it is cut after S samples or padded with zeros.
"""

import functools
import io
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.files import reserve
from ssljax.base.hashing import digest
from ssljax.base.retries import retried
from ssljax.data.cache import build_once
from ssljax.data.config import DataConfig
from ssljax.data.images import in_threads
from ssljax.data.selection import Rows
from ssljax.data.sources import Blobs, OnDemand

_LARGEST = 4 << 30  # bytes of clips that are decoded once, into a file of the cache
_VERSION = 1  # part of the name of caches; raise it if a change of the decoding changes samples
_AT_ONCE = 256 << 20  # bytes of clips that are decoded before they are written
_LONGEST = 1 << 30  # samples of a clip
_LOUDEST = 8.0  # largest sample; resampling and compression exceed 1 a little, integers stored as floats by far


class Clips:
    """The sounds of the selected rows of a column, as clips of one length.

    Attributes:
        elements: keys of the batch: "audio" float32 [S], and "audio_length" int32, the number of samples before the
            padding.

    Args:
        rows: the selected rows, whose column "audio" has bytes of files (wav, flac, ogg, mp3), or samples: [N, S] or a
            list of [n], floats or integers.
        fingerprint: fingerprint of the source of the rows; names the cache of decoded files.
        config: the keys `sample_rate` and `clip_seconds` of `data`.
        root: folder of caches.

    Raises:
        UserError: a key is missing, or the column has no sounds.
    """

    def __init__(self, rows: Rows, fingerprint: Any, config: DataConfig, root: pathlib.Path):
        if config.sample_rate is None or config.clip_seconds is None:
            name = "sample_rate" if config.sample_rate is None else "clip_seconds"
            what = "a number of samples per second" if config.sample_rate is None else "a length in seconds"
            raise UserError(f"data.{name}: missing; audio needs {what} (or name data.keys without audio)")
        self.rate, self.length = config.sample_rate, round(config.clip_seconds * config.sample_rate)
        if self.length < 1:
            raise UserError(f"data.clip_seconds: got {config.clip_seconds}, must be at least one sample")
        if self.length > _LONGEST:
            raise UserError(f"data.clip_seconds: got {config.clip_seconds}, a clip of more than {_LONGEST:,} samples")
        self.rows, self.column, self.root, self.fingerprint = rows, rows.columns["audio"], root, fingerprint
        if not isinstance(self.column, Blobs | OnDemand | np.ndarray | list):
            raise UserError(f"data.keys.audio: the column of {rows.title} must hold files of sound, or samples")
        self.elements: dict[str, Any] = {
            "audio": {"shape": [self.length], "dtype": "float32"},
            "audio_length": {"shape": [], "dtype": "int32"},
        }

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays [B, ...] of some of the selected rows.

        Raises:
            UserError: a sound is damaged, has no samples, or samples that are not finite.
        """
        if self._cached:
            audio, lengths = self._arrays
            return {"audio": audio[rows], "audio_length": lengths[rows]}
        made = in_threads(self._samples, rows.tolist()) if isinstance(self.column, Blobs) else map(self._samples, rows)
        return self._padded(list(made))

    def _padded(self, sounds: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        audio, lengths = np.zeros((len(sounds), self.length), np.float32), np.zeros(len(sounds), np.int32)
        for i, samples in enumerate(sounds):
            audio[i, : len(samples)], lengths[i] = samples, len(samples)
        return {"audio": audio, "audio_length": lengths}

    @functools.cached_property
    def _cached(self) -> bool:
        """True if files are decoded once."""
        return isinstance(self.column, Blobs) and 4 * len(self.rows.index) * self.length <= _LARGEST

    @functools.cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All clips, float32 [N, S], and their lengths, int32 [N]."""
        key = digest(["audio", _VERSION, self.fingerprint, self.rate, self.length])
        folder = build_once(self.root / f"audio-{key}", self._build)
        return np.load(folder / "audio.npy", mmap_mode="r"), np.array(
            json.loads((folder / "lengths.json").read_text()), np.int32
        )

    def _build(self, folder: pathlib.Path) -> None:
        """Writes all clips into a file of the cache."""
        count, path, lengths = len(self.rows.index), folder / "audio.npy", []
        out = np.lib.format.open_memmap(path, "w+", np.float32, (count, self.length))
        reserve(path)
        at_once = max(1, _AT_ONCE // (4 * self.length))
        for start in range(0, count, at_once):
            rows = range(start, min(start + at_once, count))
            made = self._padded(in_threads(self._samples, rows))
            out[rows.start : rows.stop] = made["audio"]
            lengths += made["audio_length"].tolist()
        out.flush()
        (folder / "lengths.json").write_text(json.dumps(lengths))

    def _samples(self, i: int) -> np.ndarray:
        """Returns the samples of a selected row, float32 [n], n <= S."""
        row = int(self.rows.index[i])
        if isinstance(self.column, Blobs):
            name = self.column.name(row)
            try:
                content = retried(self.column.get)(row)
            except OSError as error:
                raise UserError(f"data.source: cannot read {name} ({error.strerror})") from error
            samples = decode(content, name, self.rate, self.length)
        else:
            name = f"{self.rows.location(row)} of {self.rows.title}"
            samples = from_numbers(np.asarray(self.column[row]), name, self.length)
        if not len(samples):
            raise UserError(f"data.source: {name} has no samples, must have at least one")
        if not np.isfinite(samples).all():
            raise UserError(f"data.source: {name} has samples that are not finite numbers")
        if (peak := np.abs(samples).max()) > _LOUDEST:
            raise UserError(f"data.source: {name} has samples of up to {peak:.6g}, must be about [-1, 1]")
        return samples


def decode(content: bytes, name: str, rate: int, length: int) -> np.ndarray:
    """Returns the first samples of a file of sound at some rate: the mean of its channels, float32 [n].

    A file of another rate is resampled by a polyphase filter (`scipy.signal.resample_poly`), which removes frequencies
    above half of the lower rate. The result is that of the whole file, of which no more than needed is decoded.

    Args:
        content: the bytes of the file.
        name: the name of the file, for messages.
        rate: samples per second.
        length: the largest number of samples, n.

    Raises:
        UserError: the file is damaged, or not a file of sound.
    """
    import soundfile

    _check_whole(content, name)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            common = math.gcd(rate, file.samplerate)
            up, down = rate // common, file.samplerate // common
            # The filter has 20 max(up, down) + 1 taps at `up` times the rate of the file.
            reach = 0 if up == down else 10 * max(up, down) // up + 1
            channels = file.read(-(-length * down // up) + reach, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        detail = getattr(error, "error_string", str(error)).strip().rstrip(".")
        raise UserError(f"data.source: {name} is damaged or not a file of sound ({detail})") from error
    samples = channels.mean(1)
    if up != down and len(samples):
        from scipy.signal import resample_poly

        samples = resample_poly(samples, up, down).astype(np.float32)
    return samples[:length]


def _check_whole(content: bytes, name: str) -> None:
    """Raises a `UserError` if a wav or aiff file is shorter than its header says, of which soundfile reads the rest."""
    order: Any = {b"RIFF": "little", b"FORM": "big"}.get(content[:4])
    if order is None:
        return
    stated = int.from_bytes(content[4:8], order) + 8
    # A writer that did not know the length leaves 0 or a number near 2^31 or 2^32; some leave out the last pad byte.
    if len(content) + 1 < stated < 0x7FFFF000 and stated > 8:
        raise UserError(f"data.source: {name} is cut off: it has {len(content)} bytes of {stated}")


def from_numbers(samples: np.ndarray, name: str, length: int) -> np.ndarray:
    """Returns the first `length` samples of [n] as float32: floats as they are, integers divided by 2^(bits - 1).

    Raises:
        UserError: the row is not a list of samples.
    """
    if samples.ndim != 1 or samples.dtype.kind not in "if" or samples.dtype == np.int64:
        hint = "; integers of JSON have no size: store floats" if samples.dtype == np.int64 else ""
        raise UserError(
            f"data.keys.audio: got {samples.dtype} of shape {list(samples.shape)} at {name}, must be samples of shape "
            f"[n], floats in [-1, 1] or signed integers of 8, 16 or 32 bits{hint}"
        )
    scale = 1.0 if samples.dtype.kind == "f" else 2.0 ** (8 * samples.dtype.itemsize - 1)
    return (samples[:length] / scale).astype(np.float32)
