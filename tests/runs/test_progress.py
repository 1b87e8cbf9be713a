"""The progress of a run on a terminal of 80 and of 160 columns, and without a terminal."""

import io
import logging
import re

import pytest
import rich.console
import tiny_runs

from ssljax import run
from ssljax.base.console import ConsoleHandler, console
from ssljax.runs import progress

NUMBERS = {"loss": 4.12345, "learning_rate": 1e-3, "examples_per_second": 812.4, "device_memory_gb": 12.3}
LINE = {"eval": "knn", "headline": ["accuracy"], "metrics": {"accuracy": 0.703}}


def shown(monkeypatch, terminal, width=80):
    """The lines that a run of 500 steps shows."""
    file = io.StringIO()
    made = rich.console.Console(file=file, force_terminal=terminal, width=width, color_system=None)
    monkeypatch.setattr(progress, "console", lambda: made)
    monkeypatch.setattr("ssljax.base.console.console", lambda: made)
    bar = progress.Progress(500, 0, shown=True)
    for step in (50, 100):
        bar.update(step, NUMBERS)
        bar.evaluated([LINE])
    bar.close()
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*\w", "", file.getvalue())) if line.strip()]


@pytest.mark.parametrize("width", [80, 160])
def test_a_bar_fits_the_terminal(monkeypatch, width):
    lines = shown(monkeypatch, True, width)
    assert all(len(line) <= width for line in lines)
    assert "step 100/500" in lines[-1] and "loss 4.1235, knn accuracy 0.703" in lines[-1]
    assert ("812 examples/s, 12.3 GB, rate 1.0e-03" in lines[-1]) == (width == 160)
    assert not any("…" in line for line in lines), "nothing is cut off"


def test_without_a_terminal_there_is_a_line_per_log_point(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "ssljax")
    assert shown(monkeypatch, False) == []
    assert [re.sub(r"\d:\d\d:\d\d", "T", line) for line in caplog.messages] == [
        "step 50/500: loss 4.1235, 812 examples/s, 12.3 GB, rate 1.0e-03, elapsed T, left T",
        "step 100/500: loss 4.1235, 812 examples/s, 12.3 GB, rate 1.0e-03, elapsed T, left T, knn accuracy 0.703",
    ]


def test_log_lines_print_above_the_bar_and_quiet_ones_not_at_all(monkeypatch):
    file = io.StringIO()
    made = rich.console.Console(file=file, force_terminal=True, width=60, color_system=None)
    monkeypatch.setattr("ssljax.base.console.console", lambda: made)
    handler = ConsoleHandler()
    handler.emit(logging.makeLogRecord({"msg": "a [bold]line[/bold] :smile: " + "x" * 80, "levelno": 20}))
    handler.emit(logging.makeLogRecord({"msg": "a line for the file", "levelno": 20, "quiet": True}))
    assert file.getvalue() == "a [bold]line[/bold] :smile: " + "x" * 80 + "\n"
    assert console.cache_info().maxsize is None


def test_the_log_says_what_is_trained_with_which_versions(tmp_path):
    config = {**tiny_runs.LM, "data": {"source": "builtin:python-docs", "seq_len": 16}}
    run.train(config, tmp_path / "run")
    text = (tmp_path / "run" / "log.txt").read_text()
    for part in ("objective CausalLM", "model     GPT, ", "steps     2 of 8 examples", "devices   8 x cpu (data 8)"):
        assert part in text
    for part in ("command ", "host ", "versions ", "jax ", "flax "):
        assert part in text


def test_the_bar_says_compiling_until_the_first_step_only(monkeypatch):
    monkeypatch.setattr(progress, "_REDRAWN", 0)
    for start, texts in ((0, ["compiling", ""]), (10, ["", ""])):
        bar = progress.Progress(10, start, True)
        seen = [bar._bar.tasks[0].fields["text"]]
        bar.tick(min(start + 1, 10))
        bar.close()
        assert [*seen, bar._bar.tasks[0].fields["text"]] == texts
