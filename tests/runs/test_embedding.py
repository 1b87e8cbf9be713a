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


def sorted_names(pictures):
    return sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))


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


def test_the_card_of_an_export_gives_the_same_features(workdir, pictures, tmp_path, monkeypatch, capsys):
    assert cli.main(["export", str(workdir), str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "objective: simclr, on builtin:digits [train]" in said and "features: the class token" in said
    card = (tmp_path / "README.md").read_text()
    assert all(line.strip().split(": ", 1)[1] in card for line in said.splitlines()[1:-1])
    source, out = ["--source", f"images:{pictures}"], ["--out", str(tmp_path / "x.npy")]
    assert cli.main(["embed", str(tmp_path), *source, *out, "--feature", "first"]) == 0
    squares = [
        np.asarray(Image.open(pictures / name).convert("L").resize((13, 8), 3)) for name in sorted_names(pictures)
    ]
    expected = features(workdir, np.stack(squares)[:, :, 2:10, None])  # resized first, then cut
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, rtol=1e-4, atol=1e-5)
    for words, message in (
        (["embed", str(tmp_path), *out], "--source: missing;"),
        (["embed", str(tmp_path), *out, *source, "--feature", "poold"], "no 'poold'; did you mean 'pooled'"),
        (["embed", str(tmp_path), *out, *source, "--step", "3"], "--step: got 3, but"),
        (["eval", "--workdir", str(tmp_path)], "has no data and no evaluations; `ssljax train"),
    ):
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    embedded = runs.embed(workdir, f"images:{pictures}")
    for name, feature in zip(embedded.names[:3], embedded.features):
        np.testing.assert_allclose(names["embed"](pictures / name)[0].numpy(), feature, rtol=1e-4, atol=1e-5)


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
