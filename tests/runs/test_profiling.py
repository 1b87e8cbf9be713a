"""Traces of steps and the text of the compiled step."""

import pytest
from jax.profiler import ProfileData

from ssljax import run
from ssljax.base.errors import UserError
from ssljax.runs.profiling import parse_steps, tracing
from ssljax.runs.workdir import Workdir

CONFIG = {
    "model": {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2, "patch_size": 4},
    "objective": {"name": "classification"},
    "data": {"source": "builtin:digits"},
    "optimizer": {"name": "adamw", "learning_rate": 0.01},
    "steps": 8,
    "batch_size": 16,
    "mesh": {"data": 8},
    "log": {"every_steps": 2, "progress": False, "trackers": [], "pictures": False},
}


def steps_in(folder):
    """The numbers of the steps that a trace has."""
    (file,) = folder.rglob("*.xplane.pb")
    events = [e for plane in ProfileData.from_file(str(file)).planes for line in plane.lines for e in line.events]
    return {dict(e.stats)["step_num"] for e in events if e.name == "train" and "step_num" in dict(e.stats)}


def test_a_run_with_a_trace_and_the_compiled_step(tmp_path):
    run.train(CONFIG, tmp_path, profile=(3, 6), hlo=True)
    assert steps_in(tmp_path / "profile") == {3, 4, 5}  # counted from 0: the steps after three were done
    text = (tmp_path / "step_hlo.txt").read_text()
    assert text.startswith("HloModule") and "all-reduce" in text


def test_a_trace_ends_with_the_run(tmp_path):
    run.train(CONFIG, tmp_path, profile=(6, 100))
    assert steps_in(tmp_path / "profile") == {6, 7}
    assert not (tmp_path / "step_hlo.txt").exists()


@pytest.mark.parametrize("text", ["", "3", "3:", "5:5", "6:5", "0:3", "a:b", "1:2:3", "-1:4"])
def test_a_range_without_steps_is_refused(text):
    with pytest.raises(UserError, match=r"--profile: got '.*', must be START:STOP with 1 <= START < STOP"):
        parse_steps(text)


def test_ranges():
    assert parse_steps("10:13") == (10, 13)


@pytest.mark.parametrize(("steps", "done", "recorded"), [((3, 5), 5, False), ((8, 9), 0, False), ((3, 5), 4, True)])
def test_a_trace_of_steps_that_the_run_does_not_take_is_said(tmp_path, caplog, steps, done, recorded):
    with tracing(Workdir(tmp_path), steps, done, 8):
        pass
    assert (f"the run takes steps {done + 1} to 8, so nothing is recorded" in caplog.text) == (not recorded)
