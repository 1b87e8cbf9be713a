"""`ssljax views`: what the step reads of some examples of every objective."""

import numpy as np
import pytest
import soundfile
import tiny_objectives as tiny
from daily import at_most
from PIL import Image

from ssljax import cli, objectives
from ssljax.base.exhibits import Grid, Texts
from ssljax.config import build
from ssljax.runs.views import show_views


def shown(name, folder, rows=3, **objective):
    groups = tiny.config(name, bytes=True)
    groups["objective"] |= objective
    keys = {"data": tiny.data(name, folder), "optimizer": {"name": "adamw"}, "batch_size": 8, "steps": 2}
    return show_views(build({**groups, **keys}), rows)


@pytest.mark.parametrize("name", at_most(objectives.REGISTRY, 4))
def test_every_objective_has_something_to_show(name, tmp_path):
    found = shown(name, tmp_path)
    assert found
    for exhibit in found.values():
        rows = exhibit.examples if isinstance(exhibit, Texts) else exhibit.rows
        assert len(rows) == 3
        if isinstance(exhibit, Grid):
            assert exhibit.columns[0] == "original" and len(exhibit.columns) > 1
            assert all(0 <= tile.image.min() <= tile.image.max() <= 1 for row in rows for tile in row)
        else:
            assert all(label == "original" and text for (label, text), *_ in rows)


def test_masked_patches_are_grey_and_the_others_as_they_are_read(tmp_path):
    (grid,) = shown("mae", tmp_path, mask_ratio=0.75).values()
    assert grid.columns == ("original", "image", "masked")
    for _, image, masked in grid.rows:
        grey = (masked.image == 0.5).all(-1)
        assert grey.reshape(2, 4, 2, 4).all((1, 3)).sum() == 3
        np.testing.assert_array_equal(masked.image[~grey], image.image[~grey])


def test_masks_of_large_crops_are_shown(tmp_path):
    (grid,) = shown("ibot", tmp_path, mask_probability=1.0, mask_ratio=(0.5, 0.5)).values()
    assert grid.columns[-2:] == ("masked 1", "masked 2")
    place = {name: i for i, name in enumerate(grid.columns)}
    for row in grid.rows:
        for v in (1, 2):
            crop, masked = (row[place[f"{name} {v}"]].image for name in ("global", "masked"))
            grey = (masked == 0.5).all(-1)
            assert grey.mean() >= 0.5  # two of four patches
            np.testing.assert_allclose(masked[~grey], crop[~grey], atol=1e-6)


def test_sentinels_and_masks_are_visible(tmp_path):
    (texts,) = shown("mlm", tmp_path).values()
    assert all([label for label, _ in one] == ["original", "tokens", "target"] for one in texts.examples)
    assert any("[MASK]" in dict(one)["tokens"] for one in texts.examples)
    (texts,) = shown("span_corruption", tmp_path).values()
    assert all("<319>" in text for one in texts.examples for label, text in one if label != "original")


def test_the_command_writes_a_picture(tmp_path, capsys):
    command = ["views", "--config", "configs/quickstart.py", "--rows", "2", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path}/views.png"
    assert Image.open(tmp_path / "views.png").width > 100
    assert cli.main([*command[:-1], str(tmp_path / "no")]) == 2 and "--out: the folder" in capsys.readouterr().err
    assert cli.main([*command, "--rows", "0"]) == 2 and "--rows: got 0, must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["simclr", "mae", "fusion"])
def test_spectrograms_are_shown_with_low_frequencies_below(name, tmp_path):
    """A tone of 500 Hz, at the eighth of a band of 4,000 Hz: a bright line near the bottom of each picture."""
    (tmp_path / "a").mkdir()
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(4000) / 8000)
    for i in range(8):
        soundfile.write(tmp_path / "a" / f"{i}.wav", tone, 8000)
    model = {"name": "ast", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4, "strides": [4, 4]}
    objective = {"name": name, "mean": [-9.0], "std": [5.0]}
    if name == "simclr":
        objective["augment"] = {"name": "audio_views", "bands": 0, "frames": 0, "noise": None, "crop": 1.0}
    if name == "fusion":
        part = {"augment": {"name": "audio_views"}, "mean": [-9.0], "std": [5.0]}
        objective = {"name": "fusion", "parts": {n: {"name": n, **part} for n in ("simclr", "barlow_twins")}}
    data = {"source": f"audio:{tmp_path}/a", "sample_rate": 8000, "clip_seconds": 0.5, "cache_dir": str(tmp_path / "c")}
    keys = {"data": data, "optimizer": {"name": "adamw"}, "batch_size": 8, "steps": 2}
    (grid,) = show_views(build({"model": model, "objective": objective, **keys}), 2).values()
    if name == "fusion":
        assert len(grid.columns) == 4
        return
    assert grid.columns[:2] == (("original", "image 1") if name == "simclr" else ("original", "image"))
    for tile in (tile for row in grid.rows for tile in row[:2]):
        assert tile.image.shape[0] == 128 and tile.image[:64].mean() < tile.image[64:].mean()
        assert np.argmax(tile.image.mean((1, 2))) > 64
