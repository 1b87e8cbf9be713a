"""The report, from small artificial workdirs."""

import base64
import json
import re

import numpy as np
import pytest

from ssljax.base.errors import UserError
from ssljax.report import evaluation_table, facts, print_table, read_run, render
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
    values = {"objective": {"name": "simclr<b>"}, "data": {"source": "x"}}
    values["model"] = {"name": "vit"}
    (workdir / "config.json").write_text(json.dumps(values))
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


def test_the_table_names_controls_that_are_not_beaten():
    table = evaluation_table(RECORDS)
    assert table.columns == ["evaluation", "metric", "trained", "untrained", "raw", "bigram", "verdict"]
    knn, text = table.rows
    assert knn == ["knn", "accuracy", "91.0 ± 1.0 %", "70.0 %", "95.0 %", "", "does not beat raw"]
    assert text[2:] == ["2", "", "", "3.5", "beats all"]
    assert table.notes[0] == "knn: k 20, train 1,437, test 360" and table.notes[-1] == "text: take care"


def test_ties_and_numbers_that_are_not_finite_beat_nothing():
    tie = evaluation_table([record("a", "trained", 1, {"accuracy": 0.5}), record("a", "raw", 1, {"accuracy": 0.5})])
    assert tie.rows[0][-1] == "does not beat raw"
    diverged = evaluation_table(
        [record("a", "trained", 1, {"accuracy": None}), record("a", "raw", 1, {"accuracy": 0.5})]
    )
    assert diverged.rows[0][2] == "not finite" and diverged.rows[0][-1] != "beats all"


def test_the_table_on_the_console(capsys):
    print_table(evaluation_table(RECORDS))
    text = capsys.readouterr().out
    assert "91.0" in text and "does not" in text and "knn: k 20, train 1,437, test 360" in text and "take care" in text


def test_formats_of_names_and_numbers():
    assert readable("image_to_text_r10") == "image to text R@10" and readable("accuracy_top5") == "accuracy top 5"
    assert format_metric("image_to_text_r1", {"image_to_text_r1": 0.123}) == "12.3 %"
    assert format_metric("loss", {"loss": 1.23456}) == "1.235"


def test_the_page_is_self_contained(tmp_path):
    write(tmp_path)
    html = render(tmp_path)
    (image,) = re.findall(r'(?:src|href)="([^"]*)"', html)
    head, _, content = image.partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(content).startswith(b"\x89PNG")
    text = re.sub(r"base64,[^\"]+", "", html)
    assert re.findall(r"https?://\S+", text) == ["https://github.com/leeoniya/uPlot"], "only in a comment"
    assert not re.search(r"<link|<script[^>]* src|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert "The MIT License" in text and "metrics.jsonl" in re.search(r"<noscript>(.*?)</noscript>", text)[1]
    assert "simclr&lt;b&gt; on x" in text and "simclr<b>" not in text  # text of the user is escaped
    assert "91.0 ± 1.0 %" in text and "does not beat raw" in text and "take care" in text
    assert "300 steps" in text and "19,200 examples seen" in text and "2 steps skipped" in text
    assert "<details>" in text


def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path):
    write(tmp_path, embedding=False)
    for name in ("metrics.jsonl", "evals.jsonl"):
        with open(tmp_path / name, "a") as f:
            f.write('{"step": 310, "lo')
    run = read_run(tmp_path)
    assert len(run.metrics) == 30 and len(run.evals) == len(RECORDS)
    assert "Embedding" not in render(tmp_path)


START = {
    "time": "2026-01-02T03:04:05.678+00:00",
    "step": 0,
    "parameters": 123_456,
    "steps": 300,
    "epochs": 2.5,
    "device_kind": "TPU v5",
    "mesh": {"data": 4, "fsdp": 2, "tensor": 1},
    "processes": 2,
    "command": "ssljax train <x>",
    "host": "node7",
    "platform": "Linux",
    "python": "3.12.1",
    "versions": {"ssljax": "0.1", "jax": "0.11"},
    "commit": "abc",
    "seconds": {"total": 100.0, "start": 10.0, "waiting": 5.0, "evaluations": 20.0, "checkpoints": 4.5},
}


def test_the_page_says_what_the_run_was(tmp_path):
    write(tmp_path, embedding=False)
    later = {**START, "step": 200, "versions": {"jax": "0.12"}, "time": "2026-02-03T04:05:06.789+00:00"}
    later["seconds"] = {**START["seconds"], "lost": 12.0}
    (tmp_path / "starts.jsonl").write_text(json.dumps(START) + "\n" + json.dumps(later) + "\n")
    found = facts.description(read_run(tmp_path))
    assert found["devices"] == "8 × TPU v5 (data 4, fsdp 2), 2 processes"
    assert found["versions"] == "Python 3.12.1, ssljax 0.1, jax 0.11; then Python 3.12.1, jax 0.12"
    assert found["started"] == "2026-01-02 03:04 UTC; 2026-02-03 04:05 UTC from step 200"
    assert found["time"] == (
        "3.3 min: training 109 s (54 %), start and compilation 20 s (10 %), waiting for data 10 s (5 %), "
        "evaluations 40 s (20 %), checkpoints 9 s (4 %), steps done again 12 s (6 %)"
    )
    assert found["command"] == "ssljax train <x>" and found["length"] == "300 steps = 2.5 epochs"
    html = render(tmp_path)
    assert "model vit, 123,456 parameters with all heads · 8 × TPU v5 (data 4, fsdp 2), 2 processes" in html
    assert "<td>ssljax train &lt;x&gt;</td>" in html and "<h2>Run</h2>" in html


def test_a_workdir_without_starts_has_fewer_facts(tmp_path):
    write(tmp_path, embedding=False)
    found = facts.description(read_run(tmp_path))
    assert found == {
        "workdir": str(tmp_path),
        "objective": "simclr<b>",
        "model": "vit",
        "data": "x",
        "time": "10.0 min",
    }


def test_explanations_fit_the_task(tmp_path):
    write(tmp_path, embedding=False)
    assert "raw: the input itself instead of features" in render(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps({"elements": {"image": {"shape": [8, 8, 1], "dtype": "uint8"}}}))
    assert "raw: the pixels themselves instead of features" in render(tmp_path)
    write(tmp_path, evals=RECORDS[-2:], embedding=False)
    text = render(tmp_path).partition("<body>")[2].partition("<script")[0]
    assert "bigram: frequencies of pairs of tokens" in text and "pixels" not in text and "raw" not in text


def test_a_run_with_few_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "No evaluation was run" in render(tmp_path)
    write(tmp_path, evals=RECORDS[:1], metrics=1, embedding=False)
    assert "50.0 %" in render(tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"xy": np.zeros((5, 2))},
        {"features": np.ones((3, 1)), "label": np.array([0, 0, 7])},
        {"xy": np.random.default_rng(0).normal(size=(200, 2)), "label": np.arange(200) // 2},
        {"xy": np.random.default_rng(0).normal(size=(9, 2)), "images": np.zeros((9, 4, 4, 1), np.uint8)},
    ],
)
def test_all_kinds_of_embeddings(tmp_path, arrays):
    write(tmp_path, embedding=False)
    np.savez(tmp_path / "embedding.npz", **arrays)
    assert "Embedding" in render(tmp_path)


def test_principal_plane_equals_eigenvectors():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)) * np.array([5, 3, 1, 0.5, 0.1, 0]) + 7
    xy, shares = principal_plane(x)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(xy), np.abs((x - x.mean(axis=0)) @ vectors[:, ::-1][:, :2]), atol=1e-8)


def test_errors(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        render(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no config\.json"):
        render(tmp_path)
    write(tmp_path)
    (tmp_path / "evals.jsonl").write_text('{"step": 1, \n{"step": 2}\n')
    with pytest.raises(UserError, match=r"evals\.jsonl:1: got '\{\"step\": 1, ', must be"):
        render(tmp_path)
    write(tmp_path)
    (tmp_path / "embedding.npz").write_bytes(b"PK junk")
    with pytest.raises(UserError, match=r"embedding\.npz: not a readable"):
        render(tmp_path)
