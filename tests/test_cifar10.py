"""The script of benchmarks/cifar10.py: stops when its time is over, continues, and prints the measured numbers."""

import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TINY = [
    *("--config.batch_size=8", "--config.steps=6", "--config.model.preset=None", "--config.model.depths=(1,)"),
    *("--config.model.channels=32", "--config.model.dtype=float32", "--config.evals.knn.max_examples=64"),
    *("--config.evals.linear.max_examples=64", "--config.log.every_steps=1", "--config.data.split=train[:64]"),
]


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("cifar10")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(module, "RUNS", tmp_path)
    page = tmp_path / "gpu.md"
    page.write_text(module.PAGE.read_text())
    monkeypatch.setattr(module, "PAGE", page)
    return module


def test_without_an_accelerator_the_predicted_times_are_printed(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cifar10.py"])
    monkeypatch.setattr(script, "train", None)  # nothing is trained
    script.main()
    printed = capsys.readouterr().out
    assert "No accelerator" in printed and "not planned" not in printed
    assert all(f"| {name} |" in printed for name in script.PUBLISHED)


def test_predicted_time_is_that_of_all_steps(script):
    plan = next(line for line in script.plans.ledger().values() if line["config"].endswith("method=byol"))
    steps = -(-200 * 50_000 // 512)
    assert script.predicted("byol") == pytest.approx(steps * plan["plan"]["roofline"]["serial"])


@pytest.mark.full
def test_a_run_that_is_stopped_by_the_clock_is_continued_and_measured(
    script, monkeypatch, capsys, tmp_path, shared_data
):
    command = ["cifar10.py", "simclr", "--cpu", *TINY]
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "0.001"])
    script.main()
    assert script.measured("simclr") == ("", "")
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "9"])
    script.main()
    knn, linear = script.measured("simclr")
    assert 0 <= float(knn) <= 1 and f"| simclr | {knn} | 0.847 | {linear} | 0.907 |" in capsys.readouterr().out
    finished = (tmp_path / "simclr/metrics.jsonl").stat().st_mtime
    script.main()  # a finished method is not trained again
    assert (tmp_path / "simclr/metrics.jsonl").stat().st_mtime == finished
