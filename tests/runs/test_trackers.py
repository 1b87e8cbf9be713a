"""Trackers receive the numbers of training, of evaluations and of their controls; a failing one stops nothing."""

import csv
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs

from ssljax import run
from ssljax.base.errors import UserError
from ssljax.base.exhibits import Grid, Tile
from ssljax.config import build
from ssljax.report import pictures as drawing
from ssljax.runs.trackers import EXTRAS, REGISTRY, Stored, Tracked, Trackers
from ssljax.runs.workdir import Workdir

CONFIG = {
    **tiny_runs.LM,
    "data": {"source": "builtin:python-docs", "seq_len": 16},
    "evals": {"perplexity": {"test_split": "valid", "max_examples": 8, "every_steps": 2}},
    "steps": 4,
    "log": {"every_steps": 2, "progress": False, "pictures": False, "trackers": ["csv", "tensorboard"]},
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
    run.train({**CONFIG, "log": {**CONFIG["log"], "pictures": True}}, folder)
    return folder


def test_a_language_model_shows_samples(workdir):
    (texts,) = drawing.read(workdir / "pictures").texts
    assert [label for label, _ in texts["examples"][0]] == ["prompt", "continuation", "true continuation"]
    assert all(len(text.encode()) >= 8 for example in texts["examples"] for _, text in example)
    assert "left out" not in (workdir / "log.txt").read_text()


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
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match=r"log.trackers: 'wandb' needs the library 'wandb'; pip install ssljax\[wandb\]"
    ):
        Trackers(["wandb"], Tracked(tmp_path, {}, 0))
    assert build(CONFIG).log.trackers == ("csv", "tensorboard")


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_every_tracker_takes_numbers_and_a_second_start(name, tmp_path):
    config = {"objective.name": "simclr", "steps": 10, "mesh.data": None, "data.where": "[1]", "seed": 0, "ema": 0.5}
    for start in (0, 2):
        trackers = Trackers([name], Tracked(tmp_path, config, start))
        trackers.training(start + 1, {"loss": 0.5, "health/rank": 2.0, "hash": "text", "nan": float("nan")})
        trackers.evaluations(start + 1, [{"of": "trained", "eval": "knn", "metrics": {"accuracy": 0.5, "none": None}}])
        assert name in trackers._open, "it has failed"
        trackers.close()


def test_a_folder_that_is_made_again_is_another_run(tmp_path):
    assert Tracked(tmp_path, {}, 0).known("aim") is None
    assert Tracked(tmp_path, {}, 0).remember("aim", "a") == "a"
    assert Tracked(tmp_path, {}, 0).remember("wandb", "b") == "b"
    assert [Tracked(tmp_path, {}, 2).known(name) for name in ("aim", "wandb", "mlflow")] == ["a", "b", None]


def test_missing_names_only_what_no_earlier_start_has_stored():
    stored = Stored([("train/loss", 2), ("train/loss", 4), ("train/loss", 3), ("eval/knn", 2)])
    assert stored.missing(4, {"train/loss": 1.0, "eval/knn": 2.0, "new": 3.0}) == {"eval/knn": 2.0, "new": 3.0}
    assert stored.missing(5, {"train/loss": 1.0}) == {"train/loss": 1.0}


# Readers: (workdir, folder of the tracker) -> (runs there, hyper-parameters, [(name, step, value), ...]).


def read_csv(workdir, folder):
    found = [(k, int(row["step"]), float(v)) for row in rows(workdir) for k, v in row.items() if k != "step"]
    return 1, None, found


def read_tensorboard(workdir, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    log = EventAccumulator(str(workdir), size_guidance={"scalars": 0})
    log.Reload()
    found = [(name, e.step, e.value) for name in log.Tags()["scalars"] for e in log.Scalars(name)]
    start = log.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(start).session_start_info.hparams
    return 1, {k: getattr(v, v.WhichOneof("kind")) for k, v in settings.items()}, found


def records(path):
    """The records of a log file of LevelDB, the format of W&B's files: a file header, then blocks of 32 KiB."""
    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # no header fits at the end of a block
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_wandb(workdir, folder):
    """The files of both starts, which `wandb sync` sends to one run; the later file replaces a step."""
    from wandb.proto.wandb_internal_pb2 import Record

    ids, config, found = set(), {}, {}
    for path in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb")):
        for record in map(Record.FromString, records(path)):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            found |= {(k, items["_step"]): v for k, v in items.items() if not k.startswith("_")}
    return len(ids), config, [(name, step, value) for (name, step), value in found.items()]


def read_mlflow(workdir, folder):
    import mlflow

    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("ssljax").experiment_id])
    histories = [m for name in runs[0].data.metrics for m in client.get_metric_history(runs[0].info.run_id, name)]
    assert runs[0].info.status == "FINISHED"
    return len(runs), runs[0].data.params, [(m.key, m.step, m.value) for m in histories]


def read_trackio(workdir, folder):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = list(trackio.Api().runs("ssljax"))
    logs = SQLiteStorage.get_logs("ssljax", runs[0].name)
    found = [(k, line["step"], v) for line in logs for k, v in line.items() if k not in ("step", "timestamp")]
    return len(runs), runs[0].config, found


def read_aim(workdir, folder):
    import aim

    command = ["storage", "--repo", str(folder), "reindex", "-y"]  # `aim up` does it too
    subprocess.run([sys.executable, "-c", "from aim.cli.cli import cli_entry_point as f; f()", *command], check=True)
    runs = list(aim.Repo.from_path(str(folder)).iter_runs())
    tables = {metric.name: metric.dataframe() for metric in runs[0].metrics()}
    found = [(name, int(s), float(v)) for name, t in tables.items() for s, v in zip(t["step"], t["value"])]
    return len(runs), runs[0]["hparams"], found


READERS = {
    "aim": read_aim,
    "csv": read_csv,
    "mlflow": read_mlflow,
    "tensorboard": read_tensorboard,
    "trackio": read_trackio,
    "wandb": read_wandb,
}


def test_every_tracker_has_a_reader_and_every_library_an_extra():
    assert READERS.keys() == set(REGISTRY)
    setup = (pathlib.Path(__file__).parents[2] / "setup.py").read_text()
    for name in EXTRAS:
        assert re.search(rf'"{name}": \["{name}>=', setup), name
    assert set(REGISTRY) - set(EXTRAS) == {"csv", "tensorboard"}


KILLED = """
import json, os, signal, sys, time
from ssljax import run
config, folder, step = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def kill(at, state):
    if at == step:
        time.sleep(2)  # some libraries write in the background
        os.kill(os.getpid(), signal.SIGKILL)
run.train(config, folder, callbacks=[(1, kill)])
"""


def go_offline(name, folder, monkeypatch):
    """Keeps a library from the network; skips if it is not installed."""
    for key, value in {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "TRACKIO_DIR": str(folder / "trackio"),
        "AIM_REPO": str(folder),
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(folder)
    if name != "csv":
        pytest.importorskip(name)


@pytest.mark.full
@pytest.mark.parametrize("name", list(REGISTRY))
def test_pictures_are_taken_or_ignored(name, tmp_path, monkeypatch):
    go_offline(name, tmp_path, monkeypatch)
    (tmp_path / "run/pictures").mkdir(parents=True)
    grid = Grid("A", "B.", [[Tile(np.ones((2, 2, 1)))]])
    (tmp_path / "run/pictures/views.png").write_bytes(drawing.draw(grid))
    with Trackers([name], Tracked(tmp_path / "run", {"steps": 1}, 0)) as trackers:
        trackers.training(1, {"loss": 1.0})
        trackers.pictures(1, Workdir(tmp_path / "run"))
        assert name in trackers._open, "it has failed"


def started(config, folder, kill_at, environment):
    """Trains in a process that kills itself after a step, without the network; returns its exit code."""
    command = [sys.executable, "-c", KILLED, json.dumps(config), str(folder), str(kill_at)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, cwd=folder.parent)
    assert "gets no more values" not in (folder / "log.txt").read_text(), done.stderr
    return done.returncode


def expected(workdir):
    """{(name, step): value} of metrics.jsonl and evals.jsonl."""
    found = {}
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        found |= {(k if k.startswith("health/") else f"train/{k}", line["step"]): v for k, v in numbers.items()}
    for line in map(json.loads, (workdir / "evals.jsonl").read_text().splitlines()):
        kind = "eval" if line["of"] == "trained" else f"control/{line['of']}"
        found |= {(f"{kind}/{line['eval']}/{k}", line["step"]): v for k, v in line["metrics"].items() if v is not None}
    return found


@pytest.mark.full
@pytest.mark.parametrize("name", list(REGISTRY))
def test_a_killed_and_continued_run_is_one_run_with_the_numbers_of_the_workdir(name, tmp_path, monkeypatch):
    """Read with the reader of the library; the process is killed at step 5, after the checkpoint of step 4."""
    go_offline(name, tmp_path, monkeypatch)
    config = {
        **CONFIG,
        "steps": 8,
        "mesh": {"data": 1},
        "checkpoint": {"every_steps": 4},
        "optimizer": {"name": "adamw", "lr_multipliers": {"encoder/.*": 0.5}},
        "log": {**CONFIG["log"], "every_steps": 1, "trackers": [name]},
    }
    workdir, environment = tmp_path / "run", {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    workdir.mkdir()
    assert started(config, workdir, 5, environment) == -signal.SIGKILL
    assert started(config, workdir, 99, environment) == 0
    runs, settings, values = READERS[name](workdir, tmp_path)
    assert runs == 1
    assert len({(k, step) for k, step, _ in values}) == len(values), "a step is there twice"
    timed = ("second", "mfu", "data_wait_share", "host_share")  # have another value when a step is run again
    truth = {key: value for key, value in expected(workdir).items() if not any(word in key[0] for word in timed)}
    found = {(k, step): v for k, step, v in values if not any(word in k for word in timed)}
    if name == "wandb":  # its process has not written the last steps when it is killed; the checkpoint is of step 4
        truth = {key: value for key, value in truth.items() if key in found or key[1] != 4}
    assert found == pytest.approx(truth, rel=1e-6)
    assert any(key[0].startswith("control/untrained/perplexity/") for key in found)
    if settings is not None:
        assert str(settings["objective.name"]) == "causal_lm"
        assert float(settings["batch_size"]) == 8
        assert "0.5" in str(settings["optimizer.lr_multipliers"])
