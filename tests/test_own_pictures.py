"""One line trains on a folder of one's own pictures; what the folder cannot serve is left out with a line."""

import logging
import pathlib

import numpy as np
import pytest
from daily import daily
from PIL import Image

from ssljax import cli, run
from ssljax.base.errors import UserError
from ssljax.config import load
from ssljax.data import load_split

CONFIGS = sorted(pathlib.Path(__file__).parents[1].glob("configs/vision/[!_]*.py"))
CONFIGS = [path for path in CONFIGS if path.stem != "regression"]  # a folder has no numbers
SWAV = next(path for path in CONFIGS if path.stem == "swav")


def pictures(folder, classes):
    """12 pictures of odd sizes and modes in each class; a class "" is the folder itself."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(12):
            shape = tuple(int(x) for x in rng.integers(20, 90, 2))
            image = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
            image.convert(["RGB", "L", "RGBA"][i % 3]).save(folder / name / f"{name} {i}.png")
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_of_images_takes_a_folder(path, tmp_path):
    pictures(tmp_path / "my photos", ["cats", "dogs"])
    config, _ = load(f"{path}:data=folder", [("data.source", f"images:{tmp_path}/my photos")])
    parts = [load_split(config.data, split) for split in ("train[:-10%]", "train[-10%:]")]
    assert [len(part["id"]) for part in parts] == [22, 2] and not set(parts[0]["id"]) & set(parts[1]["id"])
    assert set(parts[0]["label"]) == {0, 1}, "a slice of a folder has pictures of every class"


@pytest.mark.parametrize("classes", daily([["cats", "dogs"], [""]], 2))
def test_one_line_trains_and_evaluates_what_the_folder_has(classes, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ssljax")
    source = f"images:{pictures(tmp_path / 'my photos', classes)}"
    overrides = [("data.source", source), ("steps", "1"), ("batch_size", "8"), ("mesh.data", "8")]
    overrides += [("data.image_size", "24"), ("model.width", "16"), ("model.depth", "1"), ("model.heads", "2")]
    overrides += [
        ("objective.augment.size", "16"),
        ("objective.projector.hidden", "8"),
        ("log.progress", "false"),
        ("log.trackers", "()"),
    ]
    overrides += [("evals.linear.l2", "(0.01,)"), ("evals.linear_10.l2", "(0.01,)")]
    config, _ = load(f"{SWAV}:data=folder", overrides)
    found = {line["eval"] for line in run.train(config, tmp_path / "run").evaluations if line["of"] == "trained"}
    left_out = [line for line in caplog.messages if line.startswith("left out: ")]
    if classes == [""]:
        assert found == set() and len(left_out) == 4 and all("no 'label'" in line for line in left_out)
    else:
        assert found == {"knn", "linear", "linear_10"}
        assert len(left_out) == 1 and "evals.linear_100.labels_per_class: got 100" in left_out[0]


def test_without_the_variant_the_keys_of_the_old_source_are_dropped(tmp_path):
    source = f"images:{pictures(tmp_path / 'my photos', ['cats', 'dogs'])}"
    config, remarks = load(str(SWAV), [("data.source", source)])
    assert remarks == ["data.source: replaced; these keys of the old source were dropped: keys, num_classes"]
    with pytest.raises(UserError, match=r"images of mixed shapes: .*; set data\.image_size"):
        load_split(config.data, "train")
    kept, _ = load(str(SWAV), [("data.keys.image", "image"), ("data.source", source)])
    assert kept.data.keys == {"image": "image"}


def test_a_folder_must_be_named(capsys):
    assert cli.main(["train", "--config", f"{SWAV}:data=folder", "--workdir", "nowhere"]) == 2
    assert "data.source: give either a source or a mixture" in capsys.readouterr().err
