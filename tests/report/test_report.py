"""Reports of small hand-made workdirs."""

import base64
import json
import re

import numpy as np
import pytest

from ssljax.base.errors import UserError
from ssljax.report import evaluation_table, read_run, write_report
from ssljax.report.figures import principal_plane
from ssljax.report.table import format_metric, readable


def record(name, of, step, metrics, better="higher", headline=("accuracy",), **more):
    return {
        "step": step,
        "eval": name,
        "type": name,
        "of": of,
        "summary": "k 20",
        "better": better,
        "headline": list(headline),
        "metrics": metrics,
        "settings": {},
        "sizes": {"train": 1437, "test": 360},
        **more,
    }


RECORDS = [
    record("knn", "trained", 10, {"accuracy": 0.5}),
    record("knn", "trained", 20, {"accuracy": 0.91, "accuracy_std": 0.01}),
    record("knn", "untrained", 0, {"accuracy": 0.7}),
    record("knn", "raw", 0, {"accuracy": 0.95}),
    record("text", "trained", 20, {"bits_per_byte": 2.0}, "lower", ["bits_per_byte"], warning="take care"),
    record("text", "bigram", 20, {"bits_per_byte": 3.5}, "lower", ["bits_per_byte"]),
]


def write(workdir, evals=RECORDS, metrics=30, embedding=True):
    (workdir / "config.json").write_text(json.dumps({"objective": {"name": "simclr<b>"}, "data": {"source": "x"}}))
    (workdir / "data.json").write_text(json.dumps({"classes": ["cat", "dog", "cow"]}))
    with open(workdir / "metrics.jsonl", "w") as f:
        for step in range(10, 10 * metrics + 1, 10):
            own = {"loss": 1 / step, "loss/a": None, "loss/b": 0.5, "feature_std": 0.3, "learning_rate": 1e-3}
            own |= {"examples": 64 * step, "seconds": 2.0 * step, "examples_per_second": 32.0, "skipped_steps": 2}
            f.write(json.dumps({"step": step, **own}) + "\n")
    (workdir / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))
    if embedding:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 255, (60, 8, 8, 3), np.uint8)
        np.savez(workdir / "embedding.npz", features=rng.normal(size=(60, 5)), label=np.arange(60) % 3, images=images)


def test_table_shows_controls_and_names_unbeaten_ones():
    table = evaluation_table(RECORDS)
    assert table.columns == ["evaluation", "metric", "trained", "untrained", "raw", "bigram", "verdict"]
    knn, text = table.rows
    assert knn == ["knn", "accuracy", "91.0 ± 1.0 %", "70.0 %", "95.0 %", "", "does not beat raw"]
    assert text[2:] == ["2", "", "", "3.5", "beats all"]
    assert table.notes[0] == "knn: k 20, train 1,437, test 360" and table.notes[-1] == "text: take care"


def test_a_tie_or_a_number_that_is_not_finite_beats_nothing():
    tie = evaluation_table([record("a", "trained", 1, {"accuracy": 0.5}), record("a", "raw", 1, {"accuracy": 0.5})])
    assert tie.rows[0][-1] == "does not beat raw"
    lost = evaluation_table([record("a", "trained", 1, {"accuracy": None}), record("a", "raw", 1, {"accuracy": 0.5})])
    assert lost.rows[0][2] == "not finite" and lost.rows[0][-1] != "beats all"


def test_names_and_numbers():
    assert readable("image_to_text_r10") == "image to text R@10" and readable("accuracy_top5") == "accuracy top 5"
    assert format_metric("image_to_text_r1", {"image_to_text_r1": 0.123}) == "12.3 %"
    assert format_metric("loss", {"loss": 1.23456}) == "1.235"


def test_the_page_stands_alone(tmp_path):
    write(tmp_path)
    page = write_report(tmp_path)
    assert page == tmp_path / "report.html" and not list(tmp_path.glob("*.tmp"))
    html = page.read_text()
    images = re.findall(r'src="([^"]*)"', html)
    assert len(images) == 5 and all(uri.startswith("data:image/") for uri in images)
    for kind, data in re.findall(r"data:image/(svg\+xml|png);base64,([^\"]+)", html):
        head = base64.b64decode(data)[:300]
        assert head.startswith(b"\x89PNG") if kind == "png" else b"<svg" in head or b"<?xml" in head
    text = re.sub(r"base64,[^\"]+", "", html)
    assert "http" not in text and "<link" not in text and "<script" not in text
    assert "simclr&lt;b&gt; on x" in text and "simclr<b>" not in text  # the name given by the user is not markup
    assert "91.0 ± 1.0 %" in text and "does not beat raw" in text and "take care" in text
    assert "300 steps" in text and "19,200 examples seen" in text and "2 steps skipped" in text
    assert "<details>" in text


def test_lines_cut_off_by_a_crash_are_left_out(tmp_path):
    write(tmp_path, embedding=False)
    for name in ("metrics.jsonl", "evals.jsonl"):
        with open(tmp_path / name, "a") as f:
            f.write('{"step": 310, "lo')
    run = read_run(tmp_path)
    assert len(run.metrics) == 30 and len(run.evals) == len(RECORDS)
    assert "Embedding" not in write_report(tmp_path).read_text()


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "No evaluation was run" in write_report(tmp_path).read_text()
    write(tmp_path, evals=RECORDS[:1], metrics=1, embedding=False)
    assert "50.0 %" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    "arrays",
    [
        {"xy": np.zeros((5, 2))},
        {"features": np.ones((3, 1)), "label": np.array([0, 0, 7])},
        {"xy": np.random.default_rng(0).normal(size=(200, 2)), "label": np.arange(200) // 2},
        {"xy": np.random.default_rng(0).normal(size=(9, 2)), "images": np.zeros((9, 4, 4, 1), np.uint8)},
    ],
)
def test_embeddings_of_every_kind(tmp_path, arrays):
    write(tmp_path, embedding=False)
    np.savez(tmp_path / "embedding.npz", **arrays)
    assert "Embedding" in write_report(tmp_path).read_text()


def test_principal_plane():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)) * np.array([5, 3, 1, 0.5, 0.1, 0]) + 7
    xy, shares = principal_plane(x)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(xy), np.abs((x - x.mean(axis=0)) @ vectors[:, ::-1][:, :2]), atol=1e-8)


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        write_report(tmp_path)
    write(tmp_path)
    (tmp_path / "evals.jsonl").write_text('{"step": 1, \n{"step": 2}\n')
    with pytest.raises(UserError, match=r"evals\.jsonl:1: got '\{\"step\": 1, ', must be"):
        write_report(tmp_path)
    write(tmp_path)
    (tmp_path / "embedding.npz").write_bytes(b"PK junk")
    with pytest.raises(UserError, match=r"embedding\.npz: not a readable"):
        write_report(tmp_path)
