"""A small dataset, written by TensorFlow Datasets and read without TensorFlow."""

import io
import shutil
import sys
import weakref

import numpy as np
import pytest
from PIL import Image

from ssljax.base.errors import UserError
from ssljax.data import SourceConfig, describe, load_split, open_data, shared_rows
from ssljax.data.splits import Split, parse_split
from ssljax.data.tfds import Tfds

tfds = pytest.importorskip("tensorflow_datasets")

IMAGES = np.random.default_rng(0).integers(0, 256, (17, 8, 8), np.uint8)


class Tiny(tfds.core.GeneratorBasedBuilder):
    """12 train and 5 test images with a class of three and a text each."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "label": tfds.features.ClassLabel(names=["ant", "bee", "cow"]),
            "text": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(0, 12), "test": self._generate_examples(12, 17)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            file = io.BytesIO()
            Image.fromarray(IMAGES[i]).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % 3, "text": f"number {i}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    builder = Tiny(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def test_tfds(config, folder):
    data = config(source=f"tfds:{folder}", mode="documents", seq_len=12)
    spec = describe(data)
    assert spec.size == 12 and spec.classes == ("ant", "bee", "cow")
    assert spec.elements["image"] == {"shape": [8, 8, 1], "dtype": "uint8"}
    for split, numbers in (("train", range(12)), ("test", range(12, 17)), ("all", range(17))):
        rows = load_split(data, split)
        # TFDS shuffles rows when it writes them; the text has the number of the row.
        found = [int(bytes(t[8 : list(t).index(258)].tolist())) for t in rows["tokens"]]
        assert sorted(found) == list(numbers)
        np.testing.assert_array_equal(rows["image"][..., 0], IMAGES[found])
        np.testing.assert_array_equal(rows["label"], np.array(found) % 3)
    assert open_data(data, 5).batch(7)["image"].shape == (5, 8, 8, 1)
    assert "tensorflow" not in sys.modules


def test_rows_that_a_split_shares_with_all(folder):
    def texts(split):
        return Tfds(str(folder)).table(parse_split(split)).get("text")

    for split in ("train", "test", "all"):
        numbers = Tfds(str(folder)).table(parse_split(split)).numbers()
        assert [texts("all")[i] for i in numbers] == list(texts(split))
    part = [SourceConfig(source=f"tfds:{folder}", split=split) for split in ("test", "all[:12]", "all[10:14]")]
    assert (shared_rows(part[0], part[1]), shared_rows(part[0], part[2])) == (0, 2)


@pytest.mark.parametrize("odd", ["a[1]", "two words", "#1 ünï", "a+b"])
def test_odd_folders(config, folder, tmp_path, odd):
    shutil.copytree(folder, tmp_path / odd / "tiny" / "1.0.0")
    data = config(source=f"tfds:{tmp_path}/{odd}/tiny/1.0.0/", mode="documents", seq_len=12)
    assert sorted(load_split(data, "test")["label"].tolist()) == sorted(i % 3 for i in range(12, 17))
    content = describe(data).content
    assert list(content.values()) == list(
        describe(config(source=f"tfds:{folder}", mode="documents", seq_len=12)).content.values()
    )


def test_damaged_files(config, folder, tmp_path):
    """Before: a traceback of the library."""
    shutil.copytree(folder, tmp_path / "tiny")
    (path,) = (tmp_path / "tiny").glob("*train.array_record*")
    content = path.read_bytes()
    data = config(source=f"tfds:{tmp_path}/tiny", mode="documents", seq_len=12)
    for damaged in (b"", b"x" * len(content), content[:100] + b"???" + content[103:], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^data\.(source: cannot read tfds:|keys\.label: got None at)[^\n]*$"):
            load_split(data, "train")
    path.unlink()
    with pytest.raises(UserError, match=r"^data\.source: [^\n]*(No such file|not exist)"):
        load_split(data, "train")


def test_reading_a_column_keeps_no_records(folder, monkeypatch):
    """Labels are read without keeping images in memory, since the images of a dataset may exceed it."""
    source = tfds.core.data_sources.base.BaseDataSource
    original, records, alive = source.__getitem__, [], []

    class Record(dict):
        """A dict that supports weak references."""

    def get(self, row):
        record = Record(original(self, row))
        records.append(weakref.ref(record))
        alive.append(sum(r() is not None for r in records))
        return record

    monkeypatch.setattr(source, "__getitem__", get)
    labels = Tfds(str(folder)).table(Split("train")).get("label")
    assert sorted(labels) == sorted(i % 3 for i in range(12)) and max(alive) <= 2


def test_tfds_errors(config, folder, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"unknown split 'val' of tfds:.* \(it has: train, test\)"):
        describe(config(source=f"tfds:{folder}", split="val"))
    with pytest.raises(UserError, match=r"^data.source: cannot open tfds:/no/such/thing \(.*\)$"):
        describe(config(source="tfds:/no/such/thing"))
