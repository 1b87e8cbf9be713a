"""starts.jsonl: a line for each start, whose times add up to the total."""

import json
import subprocess

import pytest

from ssljax.base.errors import UserError
from ssljax.runs import starts
from ssljax.runs.workdir import Workdir

VALUES = {"time": "2026-01-02T03:04:05.678+00:00", "step": 0, "mesh": {"data": 1}}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its time is set."""
    time = [100.0]
    monkeypatch.setattr(starts.time, "perf_counter", lambda: time[0])
    return time


def lines(folder):
    return [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]


def test_the_parts_of_the_time_of_a_start(tmp_path, clock):
    record = starts.StartRecord(Workdir(tmp_path), VALUES, began=98.0)
    nothing = {"waiting": 0, "lost": 0, "evaluations": 0, "checkpoints": 0}
    assert lines(tmp_path) == [{**VALUES, "seconds": {"total": 2, "start": 2, **nothing}}]
    with record.timed("evaluations"):  # of a restored step, before the first step
        clock[0] += 3
    clock[0] += 5
    record.stepped(waited=1.5)
    clock[0] += 10
    record.stepped(waited=4)  # later steps leave the part "start" as it is
    with record.timed("checkpoints"):
        clock[0] += 0.25
    with record.timed("evaluations"):
        clock[0] += 2
        record.write(waited=2.0)  # a part that still runs counts up to now
    seconds = {"total": 22.25, "start": 7, "waiting": 0.5, "lost": 0, "evaluations": 5, "checkpoints": 0.25}
    assert lines(tmp_path) == [{**VALUES, "seconds": seconds}]


def test_steps_that_are_done_again_and_lines_between_checkpoints(tmp_path, clock):
    record = starts.StartRecord(Workdir(tmp_path), VALUES, began=100.0)
    record.lose(4.5)
    clock[0] += 5
    record.write(0, every=10)  # too early
    assert lines(tmp_path)[0]["seconds"]["total"] == 0
    clock[0] += 5
    record.write(0, every=10)
    seconds = lines(tmp_path)[0]["seconds"]
    assert (seconds["total"], seconds["lost"]) == (10, 4.5)


def test_an_interrupted_part_counts(tmp_path, clock):
    record = starts.StartRecord(Workdir(tmp_path), VALUES, began=100.0)
    with pytest.raises(KeyboardInterrupt), record.timed("evaluations"):
        clock[0] += 3
        raise KeyboardInterrupt
    record.write(0)
    assert lines(tmp_path)[0]["seconds"]["evaluations"] == 3


def test_starts_are_added_and_a_line_cut_off_is_removed(tmp_path):
    starts.StartRecord(Workdir(tmp_path), VALUES, 0.0)
    with open(tmp_path / "starts.jsonl", "a") as file:
        file.write('{"time": "2026')
    later = {**VALUES, "time": "2026-01-03", "step": 7}
    starts.StartRecord(Workdir(tmp_path), later, 0.0)
    starts.StartRecord(Workdir(tmp_path, leads=False), {**VALUES, "time": "2026-01-04"}, 0.0)
    assert [line["step"] for line in lines(tmp_path)] == [0, 7]


def test_a_damaged_line_is_an_error_and_stays(tmp_path):
    content = '{"time": 3}\n' + json.dumps(VALUES) + "\n"
    (tmp_path / "starts.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"starts\.jsonl:1: got .*, must be a JSON object with 'step', 'time'"):
        starts.StartRecord(Workdir(tmp_path), VALUES, 0.0)
    assert (tmp_path / "starts.jsonl").read_text() == content


def test_the_commit_is_that_of_the_package_alone(tmp_path):
    """Before, a package installed inside a checkout of something else had its commit."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "venv").mkdir()
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert head.startswith(starts._commit(tmp_path)) and starts._commit(tmp_path / "venv") is None
