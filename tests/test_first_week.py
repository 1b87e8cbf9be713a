"""The commands of docs/first_week.md, one after another, on small data and with few steps."""

import re

import numpy as np
import pytest
from PIL import Image
from test_docs import ROOT, blocks, commands

from ssljax import cli

PAGE = ROOT / "docs/first_week.md"
SMALL = ["--config.steps=2", "--config.batch_size=16", "--config.log.every_steps=1", "--config.log.progress=false"]


def make_data(folder):
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


@pytest.mark.full
def test_the_commands_of_the_first_week(tmp_path, monkeypatch, capsys):
    make_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for words in commands(PAGE):
        small = SMALL if words[1] == "train" else []
        if "configs/quickstart.py" in words and small:  # its evaluations take minutes without XLA's optimisations
            small = [*small, "--config.evals={}"]
        assert cli.main([*words[1:], *small]) == 0, words
    assert (tmp_path / "features.parquet").exists() and (tmp_path / "comparison.html").exists()
    assert (tmp_path / "exported" / "model.safetensors").exists()
    tsne, _ = blocks(PAGE, "python")
    names: dict = {}
    exec(tsne, names)
    assert names["xy"].shape == (40, 2)
    printed = capsys.readouterr().out
    assert re.search(r"other\s+.*accuracy", printed), "the probe with other labels"
