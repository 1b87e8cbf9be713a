"""`ssljax embed`: features of new data equal those that the model gives to the prepared images."""

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssljax import cli, data, run, runs
from ssljax.base.errors import UserError
from ssljax.runs.evaluation import open_run

CONFIG = {
    "model": {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4},
    "objective": {"name": "simclr", "projector": {"hidden": 16, "output": 8}},
    "data": {"source": "builtin:digits", "max_examples": 64},
    "optimizer": {"name": "adamw"},
    "mesh": {"data": 8},
    "steps": 1,
    "batch_size": 32,
    "log": {"progress": False, "trackers": [], "pictures": False},
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run.train(CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 11 colour pictures of 20 x 12 pixels in two classes, and their paths."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(11):
        path = folder / ("ants" if i % 2 else "bees with [wings]") / f"ü {i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 20, 3), np.uint8)).save(path)
    return folder


def features(workdir, images):
    """Features of uint8 images [N, 8, 8, 1] by the objective, without batches."""
    with open_run(runs.Workdir(workdir)) as (assembly, state):
        objective = assembly.program.objective
        found = jax.jit(objective.features)(state.params, state.extra, objective.prepare({"image": images}))
        return np.asarray(found["pooled"])


def test_the_data_of_the_run(workdir):
    embedded = runs.embed(workdir, split="test", batch_size=100)
    arrays = data.load_split(data.DataConfig("builtin:digits"), "test")
    np.testing.assert_allclose(embedded.features, features(workdir, arrays["image"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(embedded.labels, arrays["label"])


def test_new_pictures_get_the_size_and_the_channels_of_the_run(workdir, pictures, tmp_path):
    paths = sorted(pictures.rglob("*.png"))
    squares = [Image.open(path).convert("L").crop((4, 0, 16, 12)).resize((8, 8), Image.BICUBIC) for path in paths]
    expected = features(workdir, np.stack(squares)[..., None])
    names = [path.relative_to(pictures).as_posix() for path in paths]
    for ending in ("npz", "parquet", "npy"):
        out = tmp_path / f"x.{ending}"
        assert cli.main(["embed", str(workdir), "--source", f"images:{pictures}", "--out", str(out)]) == 0
        if ending == "npz":
            arrays = np.load(out)
            found, found_names = arrays["features"], arrays["name"].tolist()
            assert arrays["classes"][arrays["label"]].tolist() == [name.split("/")[0] for name in names]
        elif ending == "parquet":
            table = pq.read_table(out)
            found, found_names = np.array(table["features"].to_pylist()), table["name"].to_pylist()
            assert table["label"].to_pylist() == [name.split("/")[0] for name in names]
        else:
            found, found_names = np.load(out), names
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert found_names == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.csv"], r"--out: got 'x.csv', must end in .npz, .parquet, .npy"),
        (["--out", "nowhere/x.npz"], r"--out: the folder 'nowhere' does not exist"),
        (["--out", "x.npz", "--feature", "poold"], r"--feature: the objective gives no 'poold'; did you mean 'pooled'"),
        (["--out", "x.npz", "--keys", "image"], r"--keys: got 'image', must be NAME=COLUMN"),
        (["--out", "x.npz", "--batch-size", "0"], r"--batch-size: got 0, must be at least 1"),
        (["--out", "x.npz", "--source", "images:none"], r"data.source: none does not exist"),
    ],
)
def test_mistakes_are_one_line(words, message, workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["embed", str(workdir), *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message.split("?")[0] in error
    assert not list(tmp_path.iterdir())


def test_without_a_run(tmp_path):
    with pytest.raises(UserError, match="--workdir"):
        runs.embed(tmp_path)
