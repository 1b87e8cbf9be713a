"""Trackers receive the numbers of training, of evaluations and of their controls; a failing one stops nothing."""

import csv
import logging

import pytest
import tiny_runs

from ssljax import run
from ssljax.base.errors import UserError
from ssljax.config import build
from ssljax.runs.trackers import REGISTRY, Tracked, Trackers

CONFIG = {
    **tiny_runs.LM,
    "data": {"source": "builtin:python-docs", "seq_len": 16},
    "evals": {"perplexity": {"test_split": "valid", "max_examples": 8, "every_steps": 2}},
    "steps": 4,
    "log": {"every_steps": 2, "progress": False, "trackers": ["csv", "tensorboard"]},
}
CALLS = []


class Recording:
    """A tracker of the user; it fails at step 4."""

    def __init__(self, run):
        CALLS.append(("open", run.name, run.start, run.config["objective.name"]))

    def scalars(self, step, values):
        if step == 4 and "train/loss" in values:
            raise OSError("the server is gone")
        CALLS.append((step, set(values)))

    def close(self):
        CALLS.append("close")


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def events(folder):
    """{tag: {step: value}} of the events files of a workdir, the last file wins."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c  # noqa: F401  (the format: length, crc, data, crc)

    found = {}
    for path in sorted(folder.glob("events*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            at += 16 + size
    return found


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run.train(CONFIG, folder)
    return folder


def test_numbers_of_training_evaluations_and_controls(workdir):
    seen = {}
    for row in rows(workdir):
        for name, value in row.items():
            if name != "step":
                seen.setdefault(name, {})[int(row["step"])] = float(value)
    assert {2, 4} == seen["train/loss"].keys() == seen["health/effective_rank"].keys()
    assert {2, 4} == seen["eval/perplexity/bits_per_byte"].keys()
    assert (
        {4}
        == seen["control/untrained/perplexity/perplexity"].keys()
        == seen["control/unigram/perplexity/perplexity"].keys()
    )
    for name, values in events(workdir).items():
        if name in seen:
            assert values == pytest.approx(seen[name], rel=1e-6)
    assert seen.keys() <= events(workdir).keys()


def test_a_continued_run_replaces_the_steps_after_the_checkpoint(workdir, tmp_path):
    config = {**CONFIG, "checkpoint": {"every_steps": 2}, "log": {**CONFIG["log"], "trackers": ["csv"]}}
    run.train({**config, "steps": 4}, tmp_path)
    before = rows(tmp_path)
    with Trackers(["csv"], Tracked(tmp_path, {}, 2)) as trackers:
        assert [int(row["step"]) for row in rows(tmp_path)] == [2] * sum(int(r["step"]) == 2 for r in before)
        trackers.training(4, {"loss": 1.5, "new": 2.0})
    assert rows(tmp_path)[-1] == {"step": "4", "train/loss": "1.5", "train/new": "2.0"}


def test_a_tracker_of_the_user_that_fails_is_named_once(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "ssljax")
    CALLS.clear()
    run.train({**CONFIG, "log": {**CONFIG["log"], "trackers": [f"{__name__}:Recording"]}}, tmp_path / "my run")
    assert CALLS[0] == ("open", "my run", 0, "causal_lm")
    assert [call for call in CALLS if call == "close"] == []
    assert [line for line in caplog.messages if "gets no more values: the server is gone" in line] == [
        f"the tracker {__name__}:Recording gets no more values: the server is gone"
    ]


def test_unknown_trackers_and_missing_libraries_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"log.trackers: unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        Trackers(["tensorbord"], Tracked(tmp_path, {}, 0))
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log.trackers: 'wandb' needs the library 'wandb'; pip install wandb"):
        Trackers(["wandb"], Tracked(tmp_path, {}, 0))
    assert build(CONFIG).log.trackers == ("csv", "tensorboard")


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_tracker_takes_numbers_and_a_second_start(name, tmp_path, monkeypatch):
    """Offline; a library that is not installed skips by its name."""
    if name not in ("csv", "tensorboard"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for key, value in {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "AIM_REPO": str(tmp_path),
    }.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "run").mkdir()
    config = {"objective.name": "simclr", "steps": 10, "mesh.data": None, "data.where": "[1]", "seed": 0, "ema": 0.5}
    for start in (0, 2):
        trackers = Trackers([name], Tracked(tmp_path / "run", config, start))
        trackers.training(start + 1, {"loss": 0.5, "health/rank": 2.0, "hash": "text", "nan": float("nan")})
        trackers.evaluations(start + 1, [{"of": "trained", "eval": "knn", "metrics": {"accuracy": 0.5, "none": None}}])
        assert name in trackers._open, "it has failed"
        trackers.close()
