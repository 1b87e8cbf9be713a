"""Log-mel spectrograms against the definition in float64 and against `transformers`; statistics of random views."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import views
from ssljax.base.schema import build_named
from ssljax.views.sound import FLOOR

RNG = np.random.default_rng(0)
DRAWS = 4000


def keys(n=DRAWS):
    return views.example_keys(jax.random.key(0), n)


def spectrogram(sound, rate, c):
    """The definition, frame by frame and band by band, float64 [T, F]."""
    frame, hop = round(c.window * rate), round(c.hop * rate)
    n_fft = c.n_fft or next(2**i for i in range(20) if 2**i >= frame)
    mel = lambda f: 1127 * np.log(1 + f / 700)  # noqa: E731
    top = rate / 2 if c.fmax is None else c.fmax
    points = [mel(c.fmin) + (mel(top) - mel(c.fmin)) * i / (c.mels + 1) for i in range(c.mels + 2)]
    out = []
    for start in range(0, len(sound) - frame + 1, hop):
        x = sound[start : start + frame].astype(np.float64)
        x = x - x.mean()
        x = np.array([x[n] - c.preemphasis * x[max(n - 1, 0)] for n in range(frame)])
        x = x * [0.5 - 0.5 * np.cos(2 * np.pi * n / (frame - 1)) for n in range(frame)]
        energy = np.abs(np.fft.fft(x, n_fft)) ** 2
        row = []
        for left, centre, right in zip(points, points[1:], points[2:]):
            band = 0.0
            for k in range(n_fft // 2 + 1):
                m = mel(k * rate / n_fft)
                weight = (m - left) / (centre - left) if m <= centre else (right - m) / (right - centre)
                band += max(weight, 0) * energy[k]
            row.append(np.log(max(band, FLOOR)))
        out.append(row)
    return np.array(out)


@pytest.mark.parametrize(
    ("rate", "keywords"),
    [
        (8000, {"mels": 20}),
        (8000, {"mels": 7, "n_fft": 300, "fmin": 0.0, "fmax": 3000.0, "preemphasis": 0.0}),
        (11025, {"window": 0.02, "hop": 0.007, "mels": 13}),
    ],
)
def test_log_mel_is_the_definition(rate, keywords):
    c = views.LogMel(**keywords)
    sounds = RNG.normal(size=(2, 900)) * [[0.1], [1e-5]] + 0.3  # the second is at the floor in places
    sounds[0, 400:] = 0
    want = np.stack([spectrogram(sound.astype(np.float32), rate, c) for sound in sounds])
    got = np.asarray(c(jnp.asarray(sounds, jnp.float32), rate))
    assert got.shape[1:] == c.shape(900, rate) == want.shape[1:]
    np.testing.assert_allclose(got[0], want[0], atol=2e-3)
    np.testing.assert_allclose(got[1], want[1], atol=0.05)  # float32 holds 0.3 + 1e-5 x to three digits
    assert (got[0, -1] == np.float32(np.log(FLOOR))).all()
    assert np.isfinite(jax.grad(lambda x: jnp.sum(c(x, rate)))(jnp.zeros((1, 900)))).all()


def test_log_mel_is_that_of_transformers():
    """The audio spectrogram transformer's, computed without torchaudio."""
    audio_utils = pytest.importorskip("transformers.audio_utils")
    filters = audio_utils.mel_filter_bank(257, 128, 20, 8000, 16000, mel_scale="kaldi", triangularize_in_mel_space=True)
    np.testing.assert_allclose(views.mel_filters(512, 16000, 128, 20.0, 8000.0), filters, atol=1e-9)
    sound = RNG.normal(size=16000) * 0.1
    window = audio_utils.window_function(400, "hann", periodic=False)
    options = {"power": 2.0, "center": False, "preemphasis": 0.97, "mel_filters": filters, "log_mel": "log"}
    options |= {"mel_floor": FLOOR, "remove_dc_offset": True}
    want = audio_utils.spectrogram(sound, window, 400, 160, 512, **options).T
    got = np.asarray(views.LogMel()(jnp.asarray(sound[None], jnp.float32), 16000))[0]
    np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"window": 0.2}, r"^window: got 0\.2 s, 1600 samples, must be at least 2 and at most 900"),
        ({"hop": 1e-5}, r"^hop: got 1e-05 s, must be at least one sample"),
        ({"n_fft": 128}, r"^n_fft: got 128, must be at least the 200 samples"),
        ({"fmax": 4001.0}, r"^fmax: got 4001\.0, must be fmin < fmax <= 4000"),
        ({"fmin": 4000.0}, r"^fmin: got 4000\.0, must be fmin < fmax"),
    ],
)
def test_settings_that_do_not_fit(keywords, message):
    with pytest.raises(ValueError, match=message):
        views.LogMel(**keywords).check(900, 8000)


def test_time_crop():
    """Pieces are contiguous; sizes and places are uniform."""
    n, size = 50, 64
    sound = np.zeros(size, np.float32)
    sound[:n] = np.arange(1, n + 1)
    lengths = jnp.full(DRAWS, n)
    audio, sizes = map(np.asarray, views.random_time_crop(keys(), jnp.tile(sound, (DRAWS, 1)), lengths, 0.4))
    first = audio[:, 0].astype(int) - 1
    for piece, m, start in zip(audio[:200], sizes, first):
        np.testing.assert_array_equal(piece, np.pad(sound[start : start + m], (0, size - m)))
    assert sizes.min() == 20 and sizes.max() == 50
    assert abs(sizes.mean() - 35) < 5 * 30 / np.sqrt(12 * DRAWS)
    for m in (20, 21, 49):  # the place is uniform among n - m + 1
        places = first[sizes == m]
        assert places.min() == 0 if m == 49 else places.min() <= 3
        assert places.max() <= n - m and abs(places.mean() - (n - m) / 2) < 4 * (n - m + 1) / np.sqrt(12 * len(places))
    whole, lengths = views.random_time_crop(keys(3), jnp.tile(sound, (3, 1)), jnp.array([50, 1, 0]), 1.0)
    np.testing.assert_array_equal(whole[0], sound)
    assert lengths.tolist() == [50, 1, 0] and (np.asarray(whole[2]) == 0).all()


def test_gain():
    made = np.asarray(views.random_gain(keys(), jnp.ones((DRAWS, 2)), 6.0))
    decibels = 20 * np.log10(made[:, 0])
    assert (made[:, 0] == made[:, 1]).all() and abs(decibels).max() <= 6.001 and decibels.min() < -5.9
    assert abs(decibels.mean()) < 5 * 12 / np.sqrt(12 * DRAWS)


def test_hiss():
    n, size = 900, 1000
    sound = np.zeros((500, size), np.float32)
    sound[:, :n] = RNG.normal(size=(500, n)) * 0.2
    made = np.asarray(views.random_hiss(keys(500), jnp.asarray(sound), jnp.full(500, n), (10.0, 30.0)))
    noise = (made - sound)[:, :n]
    assert (made[:, n:] == 0).all()
    ratio = 10 * np.log10((sound[:, :n] ** 2).mean(1) / (noise**2).mean(1))
    assert 9 < ratio.min() < 11 and 29 < ratio.max() < 31 and abs(ratio.mean() - 20) < 5 * 20 / np.sqrt(12 * 500)
    assert abs(noise.mean()) < 1e-3 and abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize(("axis", "n"), [(1, 20), (2, 10)])
def test_masks(axis, n):
    """Widths are uniform in 0, ..., floor(0.3 n), places uniform; hidden values are the mean of the spectrogram."""
    x = np.tile(RNG.normal(size=(1, 20, 10)).astype(np.float32), (DRAWS, 1, 1))
    made = np.asarray(views.random_spectrogram_masks(keys(), jnp.asarray(x), 1, 0.3, axis))
    hidden = (made != x).all(3 - axis)  # [B, n]
    np.testing.assert_array_equal(made != x, np.broadcast_to(np.expand_dims(hidden, 3 - axis), x.shape))
    np.testing.assert_allclose(made[made != x], x[0].mean(), rtol=1e-4, atol=1e-6)
    widths, most = hidden.sum(1), int(0.3 * n)
    counts = np.bincount(widths, minlength=most + 1)
    assert len(counts) == most + 1 and abs(counts / DRAWS - 1 / (most + 1)).max() < 5 / np.sqrt(DRAWS * (most + 1))
    starts = hidden.argmax(1)[widths == most]
    assert ((np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int), axis=1) == 1).sum(1) <= 1).all()
    share = np.bincount(starts, minlength=n - most + 1) / len(starts)
    assert len(share) == n - most + 1 and abs(share - 1 / (n - most + 1)).max() < 5 / np.sqrt(len(starts) * len(share))


def test_two_views():
    c, log_mel = views.LogMel(mels=8), lambda x: views.LogMel(mels=8)(x, 8000)
    audio = jnp.asarray(RNG.normal(size=(6, 1200)) * 0.1, jnp.float32)
    lengths = jnp.array([1200, 900, 300, 200, 1, 0])
    audio = jnp.where(jnp.arange(1200) < lengths[:, None], audio, 0)
    pipeline = build_named(views.REGISTRY, {"name": "audio_views"}, "objective.augment")
    made = pipeline(keys(6), audio, lengths, log_mel)
    assert made.shape == (6, 2, *c.shape(1200, 8000)) and np.isfinite(made).all()
    assert (np.asarray(made[:3, 0]) != np.asarray(made[:3, 1])).any((1, 2)).all()
    np.testing.assert_allclose(pipeline(keys(6)[2:4], audio[2:4], lengths[2:4], log_mel), made[2:4], atol=1e-4)
    none = dataclasses.replace(pipeline, crop=1.0, gain=0.0, noise=None, bands=0, frames=0)
    for v in range(2):
        np.testing.assert_array_equal(none(keys(6), audio, lengths, log_mel)[:, v], log_mel(audio))
    with pytest.raises(Exception, match=r"noise: got \(9\.0, 1\.0\), must be a lower"):
        build_named(views.REGISTRY, {"name": "audio_views", "noise": (9.0, 1.0)}, "objective.augment")
