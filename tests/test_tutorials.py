"""The tutorials and how-tos do what they say: their code runs, in the order of the page, on small data in few steps."""

import re
import sys

import numpy as np
import pytest
from PIL import Image
from test_docs import ROOT, words_of

from ssljax import cli

DOCS = ROOT / "docs"
SMALL = ["--config.steps=2", "--config.batch_size=32", "--config.log.every_steps=1", "--config.log.progress=false"]


def make_data(folder):
    """Writes what the pages assume: pictures, a labelled folder, texts."""
    rng = np.random.default_rng(0)
    for name in ("pictures", "labelled"):
        for label in ("cats", "dogs"):
            (folder / name / label).mkdir(parents=True)
            for i in range(20):
                pixels = rng.integers(0, 256, (40 + i, 50, 3), np.uint8)
                Image.fromarray(pixels).save(folder / name / label / f"{i}.jpg")
    (folder / "books").mkdir()
    for i in range(20):
        (folder / "books" / f"{i}.txt").write_text("Once upon a time there was a house of many rooms. " * 40)


def follow(name, monkeypatch):
    """Does what a page says in the current folder. Returns the names that its Python code leaves.

    Python code that begins with the name of a file is written to the file, other code is run. Commands of `ssljax` are
    run with few steps; those on the data of a config without its evaluations, which take minutes here.
    """
    names: dict = {}
    text = (DOCS / f"{name}.md").read_text()
    for language, block in re.findall(r"^```(python|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        file = re.match(r"# (\w+\.py)\n", block)
        if language == "python" and file:
            with open(file[1], "w") as out:
                out.write(block)
            monkeypatch.delitem(sys.modules, file[1].removesuffix(".py"), raising=False)
        elif language == "python":
            exec(block, names)
        for words in map(words_of, block.splitlines() if language == "bash" else ()):
            small = SMALL if words[1:2] == ["train"] or (words[1:2] == ["sweep"] and "--config" in words) else []
            if small and re.fullmatch(r"configs/[\w/]+\.py", words[words.index("--config") + 1]):
                small = [*small, "--config.evals={}"]
            assert not words or cli.main([*words[1:], *small]) == 0, words
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


@pytest.mark.full
def test_pictures_and_finetuning(folder, monkeypatch, capsys):
    make_data(folder)
    names = follow("tutorials/own_images", monkeypatch)
    assert names["xy"].shape == (40, 2) and (folder / "features.parquet").exists()
    assert re.search(r"other\s+.*accuracy", capsys.readouterr().out), "the probe with other labels"
    follow("tutorials/finetuning", monkeypatch)
    assert (folder / "finetuning.html").exists() and (folder / "runs/finetuned/init_from.json").exists()


@pytest.mark.full
def test_text(folder, monkeypatch):
    make_data(folder)
    follow("tutorials/own_text", monkeypatch)
    assert (folder / "exported/model.safetensors").exists()


@pytest.mark.full
def test_an_own_objective(folder, monkeypatch):
    (whole, slices) = follow("tutorials/own_objective", monkeypatch)["losses"]
    assert len(whole) == 2 and whole == pytest.approx(slices, rel=1e-5)


@pytest.mark.full
def test_comparison_report_and_collapse(folder, monkeypatch):
    assert len(follow("tutorials/sweep", monkeypatch)["comparison"].table.rows) == 3
    follow("tutorials/report", monkeypatch)
    follow("tutorials/collapse", monkeypatch)
    assert (folder / "comparison.html").exists() and (folder / "runs/quickstart/report.html").exists()


@pytest.mark.full
def test_formats(folder, monkeypatch, shared_data):
    pytest.importorskip("datasets")
    follow("howto/formats", monkeypatch)


@pytest.mark.full
def test_precision_memory_and_profiling(folder, monkeypatch, shared_data):
    for page in ("precision", "memory", "profiling"):
        follow(f"howto/{page}", monkeypatch)  # traces are read in tests/runs/test_profiling.py


def test_the_vectors_of_the_own_objective_are_a_loss(folder):
    """Its two terms against loops in float64, as the paper writes them."""
    source = re.search(
        r"^```python\n(# vicreg\.py\n.*?)^```",
        (DOCS / "tutorials/own_objective.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    names: dict = {"__name__": "vicreg"}
    exec(source[1], names)
    z = np.random.default_rng(0).normal(size=(7, 3)) * [0.2, 1, 3]
    mean = z.mean(0)
    spread = overlap = 0.0
    for j in range(3):
        spread += max(0.0, 1 - np.sqrt(sum((z[:, j] - mean[j]) ** 2) / 6 + 1e-4)) / 3
        for k in range(3):
            covariance = sum((z[i, j] - mean[j]) * (z[i, k] - mean[k]) for i in range(7)) / 6
            overlap += covariance**2 / 3 if j != k else 0.0
    np.testing.assert_allclose(names["spread"](np.float32(z)), spread, rtol=1e-5)
    np.testing.assert_allclose(names["overlap"](np.float32(z)), overlap, rtol=1e-5)
