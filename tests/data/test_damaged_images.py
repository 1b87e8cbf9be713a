"""Damaged images: the run stops, or leaves out as many as the config allows; kept decoded or encoded is the same."""

import logging

import numpy as np
import pytest
from PIL import Image

from ssljax.base.errors import UserError
from ssljax.data import DataConfig, load_split, open_data, open_split
from ssljax.data.images import Images

COUNT = 12
DAMAGED = {"truncated": "07.jpg", "empty": "08.jpg", "text": "00.jpg"}


@pytest.fixture
def folder(tmp_path):
    """Two classes of grey images; image i has the value 20 i."""
    for i in range(COUNT):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)).save(path, quality=100)
    return tmp_path / "images"


def damage(folder, *kinds):
    for kind in kinds:
        (path,) = folder.glob(f"*/{DAMAGED[kind]}")
        content = path.read_bytes()
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"<html>"}[kind])


def config(folder, tmp_path, **keys):
    keys = {"split": "all", "cache_dir": str(tmp_path / "cache")} | keys
    return DataConfig(source=f"images:{folder}", keys={"image": "image", "label": "label"}, **keys)


def values(batch):
    return np.round(batch["image"].mean((1, 2, 3)) / 20).astype(int)


@pytest.mark.parametrize("kept", ["decoded", "encoded"])
@pytest.mark.parametrize("kind", list(DAMAGED))
def test_a_damaged_image_stops_the_run(folder, tmp_path, kind, kept):
    damage(folder, kind)
    with pytest.raises(UserError, match=rf"data.source: corrupt image .*{DAMAGED[kind]}") as error:
        dataset = open_data(config(folder, tmp_path, images=kept), COUNT)
        dataset.batch(0)
    assert "\n" not in str(error.value)


def test_damaged_images_are_replaced_by_the_next_row(folder, tmp_path, caplog):
    whole = open_data(config(folder, tmp_path), 4, seed=3)
    before = [whole.batch(step) for step in range(9)]
    damage(folder, "truncated", "empty", "text")
    rows = {path.name: i for i, path in enumerate(sorted(folder.glob("*/*.jpg")))}
    names = sorted(rows, key=rows.get)
    left_out = {rows[name] for name in DAMAGED.values()}
    expected = {i: next(j % COUNT for j in range(i, i + COUNT) if j % COUNT not in left_out) for i in range(COUNT)}
    batches = {}
    for kept in ("decoded", "encoded"):
        caplog.clear()
        dataset = open_data(config(folder, tmp_path, images=kept, damaged_images=3), 4, seed=3)
        with caplog.at_level(logging.WARNING):
            batches[kept] = [dataset.batch(step) for step in range(9)]
        lines = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
        assert len(lines) == 3 and all(any(name in line for line in lines) for name in DAMAGED.values())
        assert "(3 of at most 3 damaged images)" in lines[-1]
        for old, new, step in zip(before, batches[kept], range(9)):
            np.testing.assert_array_equal(dataset.ids(step), old["id"])
            np.testing.assert_array_equal(new["id"], [expected[i] for i in old["id"]])
            assert [names[i] for i in new["id"]] == [f"{value:02}.jpg" for value in values(new)]
            np.testing.assert_array_equal(new["label"], values(new) % 2)
    for one, other in zip(*batches.values()):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    assert dataset.batch(5)["id"].tolist() == batches["encoded"][5]["id"].tolist()


@pytest.mark.parametrize("kept", ["decoded", "encoded"])
def test_one_more_than_allowed_stops_the_run(folder, tmp_path, kept):
    damage(folder, *DAMAGED)
    with pytest.raises(UserError, match=r"\(3 images are damaged, and data.damaged_images allows 2\)"):
        open_data(config(folder, tmp_path, images=kept, damaged_images=2), COUNT).batch(0)


def test_a_cache_of_more_damaged_images_than_allowed_stops_the_run(folder, tmp_path):
    damage(folder, *DAMAGED)
    open_data(config(folder, tmp_path, damaged_images=3), COUNT).batch(0)
    with pytest.raises(UserError, match="corrupt image"):
        open_data(config(folder, tmp_path, damaged_images=0), COUNT).batch(0)


def test_a_folder_of_damaged_images_only_is_refused(folder, tmp_path):
    for path in folder.glob("*/*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no image of .* can be decoded"):
        open_data(config(folder, tmp_path, damaged_images=100), 4)


@pytest.mark.parametrize("kept", ["decoded", "encoded"])
def test_evaluations_leave_damaged_images_out(folder, tmp_path, kept):
    damage(folder, *DAMAGED)
    settings = config(folder, tmp_path, images=kept, damaged_images=3)
    arrays = load_split(settings, "all")
    assert sorted(values(arrays)) == [1, 2, 3, 4, 5, 6, 9, 10, 11]
    np.testing.assert_array_equal(arrays["label"], values(arrays) % 2)
    rows = open_split(settings, "all")
    taken = [rows.take(np.arange(start, start + 4)) for start in range(0, COUNT, 4)]
    names = [name for batch in taken for name in rows.names(batch["id"].tolist())]
    assert [name.rsplit("/")[-1] for name in names] == [f"{v:02}.jpg" for batch in taken for v in values(batch)]


@pytest.mark.parametrize("kept", ["decoded", "encoded"])
@pytest.mark.parametrize("fit", ["center", "squeeze"])
def test_images_of_a_split_are_decoded_when_they_are_read(folder, tmp_path, monkeypatch, kept, fit):
    """A process reads the rows of its devices only, so that memory and work do not grow with the split."""
    damage(folder, "text")
    data = config(folder, tmp_path, images=kept, image_fit=fit, damaged_images=1, image_size=8)
    split, opened = load_split(data, "all", decode=False), open_split(data, "all")
    every = opened.take(np.arange(COUNT))
    assert split.keys() == every.keys() and ("aspect" in split) == (fit == "squeeze")
    for key, array in every.items():
        assert split[key].shape == array.shape and split[key].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(split[key]), array)
    decoded = []
    one = Images._one
    monkeypatch.setattr(Images, "_one", lambda self, i, content=None: decoded.append(i) or one(self, i, content))
    images = split["image"].select(np.arange(10)[::-1])
    assert images.shape == (10, 8, 8, 3) and not decoded
    own = np.array([2, 3, 7])
    np.testing.assert_array_equal(images[own], every["image"][9 - own])
    np.testing.assert_array_equal(images[4], every["image"][5])
    np.testing.assert_array_equal(images[-2:], every["image"][1::-1])
    assert len(decoded) == (6 if kept == "encoded" else 0)
    whole = np.asarray(split["image"])
    whole[:] = 0  # the caller's own
    np.testing.assert_array_equal(np.asarray(split["image"]), every["image"])
