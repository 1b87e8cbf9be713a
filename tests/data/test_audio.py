"""Sounds: files and arrays of samples as clips of one length; resampling, channels, errors."""

import io
import pathlib
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from ssljax.base.errors import UserError
from ssljax.data import LazyRows, audio, describe, load_split, open_data
from ssljax.data.config import cache_root
from ssljax.data.spec import DataSpec

RATE, SECONDS = 8000, 0.05
SAMPLES = 400
KEYS = {"sample_rate": RATE, "clip_seconds": SECONDS}


@pytest.fixture
def sounds():
    """Sounds of several lengths, int16; the longest is cut."""
    rng = np.random.default_rng(0)
    return [rng.integers(-(2**15), 2**15, n).astype(np.int16) for n in (1, 399, 400, 401, 900, 123)]


def expected(sounds):
    clips = np.zeros((len(sounds), SAMPLES))
    for i, sound in enumerate(sounds):
        clips[i, : len(sound)] = sound[:SAMPLES] / 2**15
    return clips, [min(len(sound), SAMPLES) for sound in sounds]


def check(arrays, sounds, order=None):
    clips, lengths = expected(sounds if order is None else [sounds[i] for i in order])
    assert arrays["audio"].dtype == np.float32 and arrays["audio_length"].dtype == np.int32
    np.testing.assert_array_equal(arrays["audio"], clips)
    np.testing.assert_array_equal(arrays["audio_length"], lengths)


def write(path, samples, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "FLAC"])
def test_a_folder_with_classes(config, sounds, tmp_path, suffix):
    for i, sound in enumerate(sounds):
        write(tmp_path / "lärm é" / ("zwölf" if i % 2 else "eins") / f"{i}.{suffix}", sound)
    (tmp_path / "lärm é" / "eins" / "notes.txt").write_text("not read")
    data = config(source=f"audio:{tmp_path}/lärm é", **KEYS)
    spec = describe(data)
    assert spec.elements["audio"] == {"shape": [SAMPLES], "dtype": "float32"}
    assert spec.classes == ("eins", "zwölf") and spec.sample_rate == RATE
    assert DataSpec.from_json(spec.to_json()) == spec
    arrays = load_split(data, "train")
    check(arrays, sounds, [0, 2, 4, 1, 3, 5])
    assert arrays["label"].tolist() == [0, 0, 0, 1, 1, 1]
    batch = open_data(data, 4).batch(0)
    rows = batch["id"]
    np.testing.assert_array_equal(batch["audio"], arrays["audio"][rows])


def test_a_pattern_of_files(config, sounds, tmp_path):
    for i, sound in enumerate(sounds):
        write(tmp_path / ("train" if i < 4 else "test") / "b" / f"{i}.wav", sound)
    write(tmp_path / "train" / "a" / "9.wav", sounds[0])
    data = config(source=f"audio:{tmp_path}/{{split}}/*/*.wav", **KEYS)
    check(load_split(data, "train"), sounds, [0, 0, 1, 2, 3])
    assert "label" not in load_split(data, "train")
    check(load_split(data, "test"), sounds, [4, 5])
    keys = {"audio": "audio", "label": "folder"}
    labelled = load_split(config(source=f"audio:{tmp_path}/{{split}}/*/*.wav", keys=keys, **KEYS), "train")
    assert labelled["label"].tolist() == [0, 1, 1, 1, 1] and labelled.classes == ("a", "b")


@pytest.mark.parametrize("kind", ["ragged", "float", "dense"])
def test_arrays(config, sounds, tmp_path, kind):
    dense = np.stack([np.resize(sound, SAMPLES) for sound in sounds])
    joined = np.concatenate(sounds)
    offsets = np.cumsum([0, *map(len, sounds)])
    joined = (joined / 2**15).astype(np.float32) if kind == "float" else joined
    np.savez(tmp_path / "a.npz", clip=dense if kind == "dense" else joined, ends=offsets, digit=np.arange(6))
    keys = {"audio": "clip" if kind == "dense" else "clip@ends", "label": "digit"}
    arrays = load_split(config(source=f"npz:{tmp_path}/a.npz", keys=keys, **KEYS), "train")
    check(arrays, list(dense) if kind == "dense" else sounds)
    assert arrays["label"].tolist() == list(range(6))


def encoded(sound):
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="FLAC")
    return file.getvalue()


def test_other_formats(config, sounds, tmp_path):
    """Encoded sounds in Parquet (as Hugging Face writes them), in tar files, and in one array; a join by name."""
    files = [encoded(sound) for sound in sounds]
    pq.write_table(pa.table({"audio": [{"bytes": file, "path": None} for file in files]}), tmp_path / "a.parquet")
    check(load_split(config(source=f"parquet:{tmp_path}/a.parquet", **KEYS), "train"), sounds)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, file in enumerate(files):
            info = tarfile.TarInfo(f"{i}.flac")
            info.size = len(file)
            tar.addfile(info, io.BytesIO(file))
    check(load_split(config(source=f"webdataset:{tmp_path}/a.tar", **KEYS), "train"), sounds)
    flat = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "b.npz", flac=flat, offsets=np.cumsum([0, *map(len, files)]))
    keys = {"audio": "flac@offsets"}
    check(load_split(config(source=f"npz:{tmp_path}/b.npz", keys=keys, **KEYS), "train"), sounds)
    for i, file in enumerate(files):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{i}.flac").write_bytes(file)
    (tmp_path / "a.csv").write_text("file_name,label\n" + "".join(f"{i}.flac,{i % 3}\n" for i in (5, 1, 0, 2, 4, 3)))
    joined = load_split(config(source=f"csv:{tmp_path}/a.csv+audio:{tmp_path}/files", **KEYS), "train")
    check(joined, sounds, [5, 1, 0, 2, 4, 3])
    assert joined["label"].tolist() == [2, 1, 0, 2, 1, 0]


def test_clips_of_large_data_are_decoded_at_each_use(config, sounds, tmp_path, monkeypatch):
    for i, sound in enumerate(sounds):
        write(tmp_path / f"{i}.wav", sound)
    monkeypatch.setattr(audio, "_LARGEST", 4 * SAMPLES * len(sounds) - 1)
    monkeypatch.setattr(audio.Clips, "_build", None)
    check(load_split(config(source=f"audio:{tmp_path}", **KEYS), "train"), sounds)


def test_evaluations_decode_clips_when_they_read_them(config, sounds, tmp_path, monkeypatch):
    """The clips of a split are not held; those of another column of labels lie in the same cache."""
    for i, sound in enumerate(sounds):
        write(tmp_path / "x" / f"{i}.wav", sound)
    (tmp_path / "a.csv").write_text("file_name,a,b\n" + "".join(f"{i}.wav,{i % 3},{i % 2}\n" for i in range(6)))
    source = {"source": f"csv:{tmp_path}/a.csv+audio:{tmp_path}/x", **KEYS}
    for label in ("a", "b"):
        data = config(**source, keys={"audio": "audio", "label": label})
        arrays = load_split(data, "train", decode=False)
        assert isinstance(arrays["audio"], LazyRows) and arrays["audio"].shape == (6, SAMPLES)
        check({name: np.asarray(arrays[name]) for name in ("audio", "audio_length")}, sounds)
        check({name: arrays[name][np.array([4, 2])] for name in ("audio", "audio_length")}, sounds, [4, 2])
        assert arrays["label"].tolist() == [i % (3 if label == "a" else 2) for i in range(6)]
    assert len(list(pathlib.Path(cache_root(data)).rglob("audio.npy"))) == 1


def test_channels_are_averaged(config, sounds, tmp_path):
    two = np.stack([sounds[2], np.roll(sounds[2], 1)], 1)
    write(tmp_path / "0.wav", two)
    got = load_split(config(source=f"audio:{tmp_path}", **KEYS), "train")["audio"][0]
    np.testing.assert_allclose(got, two.mean(1) / 2**15, atol=1e-7)


@pytest.mark.parametrize("rate", [16000, 44100, 4000, 11025])
def test_another_rate_is_resampled(config, tmp_path, rate):
    """A tone keeps its frequency and its phase; a tone above half of the new rate is removed."""
    t, wanted = np.arange(4 * rate) / rate, np.arange(4 * RATE) / RATE
    tone = lambda f, t: 0.5 * np.sin(2 * np.pi * f * t)  # noqa: E731
    high = tone(6000, t) if rate > 12000 else 0
    write(tmp_path / "0.wav", tone(440, t) + high, rate, subtype="FLOAT")
    data = config(source=f"audio:{tmp_path}", sample_rate=RATE, clip_seconds=4.0)
    arrays = load_split(data, "train")
    assert arrays["audio_length"] == 4 * RATE
    middle = slice(800, -800)
    np.testing.assert_allclose(arrays["audio"][0][middle], tone(440, wanted)[middle], atol=2e-3)
    # No more of the file is read than needed, and this changes nothing.
    short = load_split(config(source=f"audio:{tmp_path}", **KEYS), "train")["audio"][0]
    np.testing.assert_allclose(short, arrays["audio"][0][:SAMPLES], atol=1e-6)


def test_errors(config, tmp_path):
    def fails(message, **keys):
        with pytest.raises(UserError, match=message) as caught:
            load_split(config(**{"source": f"audio:{tmp_path}/x", **KEYS, **keys}), "train")
        assert "\n" not in str(caught.value)

    good = write(tmp_path / "x" / "ü.wav", np.zeros(50))
    fails(r"^data\.sample_rate: missing; audio needs", sample_rate=None)
    fails(r"^data\.clip_seconds: missing; audio needs", clip_seconds=None)
    fails(r"^data\.clip_seconds: got 1e-05, must be at least one sample", clip_seconds=1e-5)
    fails(r"^data\.source: .*/y does not exist|is not a folder", source=f"audio:{tmp_path}/y")
    fails(r"^data\.source: .*\*\.flac matches no file", source=f"audio:{tmp_path}/x/*.flac")
    content = good.read_bytes()
    good.write_bytes(b"RIFF" + bytes(60))
    fails(r"^data\.source: .*x/ü\.wav is damaged or not a file of sound \(.+\)$")
    good.write_bytes(b"")
    fails(r"^data\.source: .*x/ü\.wav is damaged or not a file of sound \(.+\)$")
    write(good, np.zeros(0))
    fails(r"^data\.source: .*x/ü\.wav has no samples, must have at least one$")
    write(good, np.array([0.0, np.nan]), subtype="FLOAT")
    fails(r"^data\.source: .*x/ü\.wav has samples that are not finite numbers$")
    write(good, np.array([0.0, 16384.0]), subtype="FLOAT")
    fails(r"^data\.source: .*x/ü\.wav has samples of up to 16384, must be about \[-1, 1\]$")
    good.write_bytes(content[:-20])
    fails(r"^data\.source: .*x/ü\.wav is cut off: it has 124 bytes of 144$")
    good.write_bytes(content[:4] + b"\xff\xff\xff\xff" + content[8:])  # a stream of unknown length
    assert load_split(config(source=f"audio:{tmp_path}/x", **KEYS), "train")["audio_length"] == 50
    fails(r"^data\.clip_seconds: got 1000000\.0, a clip of more than 1,073,741,824 samples", clip_seconds=1e6)
    good.write_bytes(content)
    assert load_split(config(source=f"audio:{tmp_path}/x", **KEYS), "train")["audio_length"] == 50
    good.rename(tmp_path / "x" / "ü.txt")
    fails(r"^data\.split: audio:.*x is empty, must have audio files \(\.aif, ")
    np.savez(tmp_path / "a.npz", audio=np.zeros((3, 4, 2)))
    fails(r"^data\.keys\.audio: got float64 of shape \[4, 2\] at row 0 of ", source=f"npz:{tmp_path}/a.npz")
    (tmp_path / "a.jsonl").write_text('{"audio": [1, 2, 3]}\n')
    fails(r"signed integers of 8, 16 or 32 bits; integers of JSON have no size", source=f"jsonl:{tmp_path}/a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"audio": "a.wav"}\n')
    fails(r"^data\.keys\.audio: got <U5 of shape \[\] at .*, must be samples", source=f"jsonl:{tmp_path}/a.jsonl")


def test_digits(shared_data, config):
    keys = {"audio": "audio@offsets", "label": "digit"}
    data = config(source=f"npz:{shared_data}/fsdd/{{split}}.npz", keys=keys, sample_rate=8000, clip_seconds=0.64)
    spec, arrays = describe(data), load_split(data, "test")
    assert spec.size == 1500 and spec.num_classes == 10 and arrays["audio"].shape == (300, 5120)
    with np.load(f"{shared_data}/fsdd/test.npz") as raw:
        clip = raw["audio"][raw["offsets"][7] : raw["offsets"][8]]
    n = min(len(clip), 5120)
    np.testing.assert_array_equal(arrays["audio"][7, :n], clip[:n] / np.float32(2**15))
    assert arrays["audio_length"][7] == n and not arrays["audio"][7, n:].any()
