"""Every kind of source returns the rows that were written into it."""

import gzip
import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssljax.base.errors import UserError
from ssljax.data import DataSpec, SourceConfig, describe, load_split, open_data, shared_rows
from ssljax.data.sources import open_source
from ssljax.data.splits import parse_split

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 6, 6, 3), np.uint8)
LABELS = RNG.integers(0, 4, 20)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def test_importing_the_data_room_loads_no_heavy_package():
    code = "import sys, ssljax.data; print([m for m in HEAVY if m in sys.modules])"
    heavy = ["jax", "tensorflow_datasets", "tokenizers", "sklearn", "PIL", "grain", "scipy"]
    out = subprocess.run([sys.executable, "-c", f"HEAVY={heavy}; {code}"], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_digits(config):
    data = config(source="builtin:digits")
    train, test, whole = (load_split(data, split) for split in ("train", "test", "all"))
    assert train["image"].shape == (1437, 8, 8, 1) and test["image"].shape == (360, 8, 8, 1)
    assert train["image"].dtype == np.uint8 and train["image"].max() == 255 and train["label"].dtype == np.int32
    assert np.bincount(test["label"], minlength=10).min() >= 25
    pixels = {tuple(i.ravel()) for i in np.concatenate([train["image"], test["image"]])}
    assert pixels == {tuple(i.ravel()) for i in whole["image"]}
    spec = describe(data)
    assert spec.classes == tuple("0123456789") and DataSpec.from_json(spec.to_json()) == spec


def test_npz(config, tmp_path):
    np.savez(tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:5, ..., 0], y_test=LABELS[:5])
    keys = {"train": {"image": "x_train", "label": "y_train"}, "test": {"image": "x_test", "label": "y_test"}}
    data = config(source=f"npz:{tmp_path}/a.npz", keys=keys)
    train, test = load_split(data, "train"), load_split(data, "test")
    np.testing.assert_array_equal(train["image"], IMAGES)
    np.testing.assert_array_equal(train["label"], LABELS)
    np.testing.assert_array_equal(test["image"], IMAGES[:5, ..., :1])
    part = load_split(data, "train[5:50%]")
    np.testing.assert_array_equal(part["image"], IMAGES[5:10])
    np.testing.assert_array_equal(part["id"], np.arange(5, 10))
    # Another source with other columns, as in an evaluation.
    other = load_split(data, "train", source=f"npz:{tmp_path}/a.npz", keys={"image": "x_train", "weight": "y_train"})
    np.testing.assert_array_equal(other["weight"], LABELS)


def test_npz_of_encoded_images(config, tmp_path):
    files = [encode(image) for image in IMAGES]
    offsets = np.cumsum([0, *map(len, files)])
    for split, rows in (("train", slice(0, 15)), ("test", slice(15, 20))):
        part = files[rows]
        ends = offsets[rows.start : rows.stop + 1] - offsets[rows.start]
        np.savez(tmp_path / f"{split}.npz", png=np.frombuffer(b"".join(part), np.uint8), ends=ends, y=LABELS[rows])
    data = config(source=f"npz:{tmp_path}/{{split}}.npz", keys={"image": "png@ends", "label": "y"})
    assert describe(data).elements["image"] == {"shape": [6, 6, 3], "dtype": "uint8"}
    for _ in range(2):  # decoded, then from the cache
        np.testing.assert_array_equal(load_split(data, "train")["image"], IMAGES[:15])
        np.testing.assert_array_equal(load_split(data, "test[-3:]")["image"], IMAGES[17:])
    batch = open_data(data, 8).batch(1)
    np.testing.assert_array_equal(batch["image"], IMAGES[batch["id"]])


def test_resize(config, tmp_path):
    """The central square, resized by Pillow, for arrays and for files."""
    wide = RNG.integers(0, 256, (4, 12, 20, 3), np.uint8)
    np.savez(tmp_path / "a.npz", image=wide)
    expected = [Image.fromarray(i[:, 4:16]).resize((6, 6), Image.Resampling.BICUBIC) for i in wide]
    (tmp_path / "flat").mkdir()
    for i, image in enumerate(wide):
        (tmp_path / f"flat/{i}.png").write_bytes(encode(image))
    for source in (f"npz:{tmp_path}/a.npz", f"images:{tmp_path}/flat"):
        images = load_split(config(source=source, image_size=6), "train")["image"]
        np.testing.assert_array_equal(images, np.stack([np.asarray(i) for i in expected]))
    grey = config(source=f"npz:{tmp_path}/g.npz", image_size=3)
    np.savez(tmp_path / "g.npz", image=wide[:, :, :, 0])
    assert load_split(grey, "train")["image"].shape == (4, 3, 3, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_idx(config, tmp_path, packed):
    def write(name, array):
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)

    end = ".gz" if packed else ""
    write(f"train-images{end}", IMAGES[..., 0])
    write(f"train-labels{end}", LABELS)
    data = config(source=f"idx:{tmp_path}/{{split}}-images{end}+idx:{tmp_path}/{{split}}-labels{end}")
    train = load_split(data, "train")
    np.testing.assert_array_equal(train["image"], IMAGES[..., :1])
    np.testing.assert_array_equal(train["label"], LABELS)


def test_image_folders(config, tmp_path):
    for i, image in enumerate(IMAGES):
        folder = tmp_path / ("train" if i < 15 else "test") / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02d}.png").write_bytes(encode(image))
    (tmp_path / "train" / "ant").mkdir()
    (tmp_path / "train" / "ant" / "00.PNG").write_bytes(encode(IMAGES[0]))
    data = config(source=f"images:{tmp_path}/{{split}}")
    spec = describe(data)
    assert spec.classes == ("ant", "cat", "dog") and spec.num_classes == 3
    test = load_split(data, "test")  # no image of an ant, but a label means the same class in all splits
    np.testing.assert_array_equal(test["label"], [1, 1, 1, 2, 2])
    np.testing.assert_array_equal(test["image"], IMAGES[[15, 17, 19, 16, 18]])
    flat = load_split(config(source=f"images:{tmp_path}/test/cat"), "train")
    assert set(flat) == {"id", "image"}


def test_jsonl_with_a_filter(config, tmp_path):
    rows = [
        {"text": f"row {i}", "label": i % 3, "old": i % 2 == 0, "split": "test" if i > 6 else "train"}
        for i in range(10)
    ]
    lines = [json.dumps(row) for row in rows]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines[:4]) + "\n\n")  # empty lines are skipped
    (tmp_path / "b.jsonl").write_text("\n".join(lines[4:]), encoding="utf-8")
    data = config(source=f"jsonl:{tmp_path}/*.jsonl*", mode="documents", seq_len=10, where={"old": False})
    train, test, whole = (load_split(data, split) for split in ("train", "test", "all"))
    np.testing.assert_array_equal(train["id"], [1, 3, 5])
    np.testing.assert_array_equal(test["label"], [7 % 3, 9 % 3])
    assert len(whole["id"]) == 5
    several = load_split(data, "train", where={"label": [0, 2]})
    np.testing.assert_array_equal(several["label"], [0, 2, 0, 2, 0])
    assert bytes(test["tokens"][0, 1:6].tolist()) == b"row 7"


def test_join_of_images_and_captions(config, tmp_path):
    np.savez(tmp_path / "i+1.npz", images=IMAGES)  # a plus sign in a path does not join
    rows = [{"caption": f"picture {i}", "good": i != 2, "split": "train" if i % 4 else "test"} for i in range(20)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = f"npz:{tmp_path}/i+1.npz+jsonl:{tmp_path}/c.jsonl"
    keys = {"image": "images", "text": "caption"}
    data = config(source=source, keys=keys, where={"good": True}, mode="documents", seq_len=16)
    expected = [i for i in range(20) if i % 4 and i != 2]
    train = load_split(data, "train")
    np.testing.assert_array_equal(train["id"], expected)
    np.testing.assert_array_equal(train["image"], IMAGES[expected])
    for i, tokens, segments in zip(expected, train["tokens"], train["segment_ids"]):
        text = f"picture {i}".encode()
        assert tokens.tolist() == [257, *text, 258, *[256] * (14 - len(text))]
        assert segments.tolist() == [1] * (len(text) + 2) + [0] * (14 - len(text))
    np.testing.assert_array_equal(load_split(data, "test[:2]")["id"], [0, 4])


def test_text_slices_count_lines(config, tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"a{i}\n" for i in range(6)))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("".join(f"b{i}\n" for i in range(4)).encode()))
    data = config(source=f"text:{tmp_path}/*.txt*", split="train[:70%]", seq_len=2)

    def text(split):  # drops the last token of an odd number of tokens
        tokens = load_split(data, split)["tokens"]
        return "".join("|" if t == 258 else chr(t) for t in tokens.ravel())

    assert text("all") == "a0\na1\na2\na3\na4\na5\n|b0\nb1\nb2\nb3\n|"
    assert text("train[:70%]") == "a0\na1\na2\na3\na4\na5\n|b0\n"
    assert text("train[70%:]") == "b1\nb2\nb3\n|"


def test_another_source_may_have_more_classes(config, tmp_path):
    """Before: `data.num_classes`, which is of the training source, was the limit of every source."""
    np.savez(tmp_path / "a.npz", image=np.zeros((40, 8, 8, 1), np.uint8), label=np.arange(40))
    data = config(source="builtin:digits", num_classes=10)
    assert load_split(data, "train", source=f"npz:{tmp_path}/a.npz")["label"].max() == 39


@pytest.mark.parametrize(
    "first, second, lines",
    [("[:100]", "[-100:]", 0), ("[:95%]", "[90%:]", 50), ("[:950]", "[900:]", 50), ("", "[90%:]", 100)],
)
def test_slices_of_text_share_lines(tmp_path, first, second, lines):
    """Before: documents were counted, of which the file is one (1, 0, 0 and 1)."""
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(1000)))
    parts = [SourceConfig(source=f"text:{tmp_path}/a.txt", split=f"train{part}") for part in (first, second)]
    assert shared_rows(*parts) == lines


@pytest.mark.parametrize(
    "source, first, second, rows",
    [
        ("digits", "all", "test", 360),
        ("digits", "all[:1000]", "test", 0),  # before: 360, as rows were counted within each split
        ("digits", "all[1437:]", "test", 360),  # before: 0
        ("digits", "train[-10:]", "all[1430:]", 7),
    ],
)
def test_rows_that_a_split_shares_with_all(source, first, second, rows):
    parts = [SourceConfig(source=f"builtin:{source}", split=split) for split in (first, second)]
    assert shared_rows(*parts) == shared_rows(*parts[::-1]) == rows


def test_spellings_of_one_file_are_one_source(tmp_path, monkeypatch):
    """Before: rows of a file under two names counted as different."""
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", image=np.zeros((10, 2, 2), np.uint8))
    np.savez("b.npz", image=np.zeros((10, 2, 2), np.uint8))
    (tmp_path / "link.npz").symlink_to("a.npz")
    first = SourceConfig(source="npz:a.npz", split="train[:6]")
    for name in ("a.npz", "./a.npz", f"{tmp_path}/a.npz", "link.npz", "*/../[a].npz"):
        second = SourceConfig(source=f"npz:{name}", split="train[4:]")
        assert shared_rows(first, second) == (0 if "*" in name else 2), name
    assert shared_rows(first, SourceConfig(source="npz:b.npz", split="train")) == 0
    assert shared_rows(first, SourceConfig(source="npz:{split}.npz", split="all")) == 0


def test_numbers_of_documents_in_all():
    """The texts at the numbers of a split are the texts of the split."""
    whole = open_source("builtin:python-docs").table(parse_split("all"))
    for split in ("train", "valid", "test", "all"):
        table = open_source("builtin:python-docs").table(parse_split(split))
        assert [whole.get("text")[i] for i in table.numbers()] == table.get("text")


@pytest.mark.parametrize("name", ["python-docs", "python-code"])
def test_builtin_texts(name):
    parts = {}
    for split in ("train", "valid", "test", "all"):
        parts[split] = open_source(f"builtin:{name}").table(parse_split(split)).get("text")
    assert len(parts["train"]) + len(parts["valid"]) + len(parts["test"]) == len(parts["all"])
    size = {split: sum(map(len, texts)) for split, texts in parts.items()}
    assert size["train"] > 1_500_000 and min(size["valid"], size["test"]) > 0.03 * size["all"]
    assert "the" in parts["test"][0]
    if name == "python-docs":
        trained_on = [p for text in parts["train"] for p in text.split("\n\n") if len(p) >= 60]
        assert not set(trained_on) & {p for text in parts["test"] for p in text.split("\n\n")}


def test_a_source_by_import_path(config, tmp_path, monkeypatch):
    (tmp_path / "outside_source").mkdir()
    (tmp_path / "outside_source" / "rows.py").write_text(
        "import numpy as np\n"
        "from ssljax.data.sources import Table\n"
        "class Rows:\n"
        "    def __init__(self, location): self.n = int(location)\n"
        "    def fingerprint(self, split): return self.n\n"
        "    def table(self, split): return Table(('label',), lambda name: np.arange(self.n))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = config(source="outside_source.rows:Rows:7")
    np.testing.assert_array_equal(load_split(data, "train")["label"], np.arange(7))


def test_a_file_source_of_the_user(config, tmp_path, monkeypatch):
    """A subclass of `FileSource` only reads files: patterns, splits and fingerprints are inherited."""
    (tmp_path / "outside_source").mkdir()
    (tmp_path / "outside_source" / "lines.py").write_text(
        "from ssljax.data.file_source import FileSource\n"
        "from ssljax.data.sources import Table\n"
        "class Lines(FileSource):\n"
        "    kind = 'lines'\n"
        "    def read(self, paths, split):\n"
        "        numbers = [int(line) for path in paths for line in path.read_text().split()]\n"
        "        return Table(('label',), lambda name: numbers)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in (("train_0", "1 2"), ("train_1", "3"), ("test_0", "4 5")):
        (tmp_path / f"{name}.txt").write_text(text)
    source = f"outside_source.lines:Lines:{tmp_path}/{{split}}_*.txt"
    data = config(source=source)
    np.testing.assert_array_equal(load_split(data, "train")["label"], [1, 2, 3])
    np.testing.assert_array_equal(load_split(data, "test[1:]")["label"], [5])
    with pytest.raises(UserError, match=r"unknown split 'tset' .*did you mean 'test'\? \(it has: test, train\)"):
        load_split(data, "tset")
    before = open_source(source).fingerprint(parse_split("train"))
    (tmp_path / "train_1.txt").write_text("3 6")
    assert open_source(source).fingerprint(parse_split("train")) != before


def test_labels_are_optional(config, tmp_path):
    np.savez(tmp_path / "a.npz", image=IMAGES)
    data = config(source=f"npz:{tmp_path}/a.npz")
    spec = describe(data)
    assert spec.num_classes is None and spec.classes is None and set(open_data(data, 4).batch(0)) == {"id", "image"}


@pytest.mark.parametrize(
    "source, keys, shape, rows",
    [
        ("npz:$SSLJAX_DATA/cifar10_jpeg/{split}.npz", {"image": "jpeg@offsets", "label": "labels"}, [32, 32, 3], 50000),
        (
            "npz:$SSLJAX_DATA/mnist/mnist.npz",
            {"train": {"image": "x_train", "label": "y_train"}, "test": {"image": "x_test", "label": "y_test"}},
            [28, 28, 1],
            60000,
        ),
    ],
)
def test_shared_images(config, shared_data, source, keys, shape, rows):
    data = config(source=source, keys=keys)
    spec = describe(data)
    assert spec.elements["image"]["shape"] == shape and spec.size == rows and spec.num_classes == 10
    test = load_split(data, "test[:200]")
    assert test["image"].shape == (200, *shape) and 20 < test["image"].mean() < 150
    assert set(test["label"]) == set(range(10))


def test_shared_emoji(config, shared_data):
    folder = "$SSLJAX_DATA/noto_emoji"
    data = config(
        source=f"npz:{folder}/images64.npz+jsonl:{folder}/captions.jsonl",
        keys={"image": "images", "text": "caption"},
        where={"skin_tone": False},
        mode="documents",
        seq_len=24,
        tokenizer={"name": "wordpiece", "vocab_size": 600, "lowercase": True},
    )
    spec = describe(data)
    assert spec.size == 1666 and spec.vocab_size == 600
    assert len(load_split(data, "test")["id"]) == 200
