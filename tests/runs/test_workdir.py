"""The folder of a run: files are whole or absent, and only the leading process writes."""

import json
import os

import numpy as np
import pytest

from ssljax.base import files
from ssljax.base.errors import UserError
from ssljax.config import build
from ssljax.data import DataSpec
from ssljax.runs.trackers import open_trackers
from ssljax.runs.workdir import Workdir

CONFIG = build(
    {
        "model": {"name": "vit", "preset": None, "width": 16, "depth": 1, "heads": 2},
        "objective": {"name": "simclr"},
        "data": {"source": "builtin:digits", "tokenizer": {"name": "bytes"}},
        "optimizer": {"name": "adamw"},
        "steps": 2,
        "batch_size": 4,
    }
)
SPEC = DataSpec(elements={"image": {"shape": [8, 8, 1], "dtype": "uint8"}}, size=10)
LINE = {"step": 2, "eval": "knn", "of": "trained", "metrics": {"accuracy": 0.5}}
START = {"time": "2026-01-02T03:04:05.678+00:00", "step": 0, "mesh": {"data": 1}, "seconds": {"total": 1.0}}
LINE |= {"headline": ["accuracy"], "better": "higher"}


def write_all(workdir):
    workdir.write_config(CONFIG)
    workdir.write_data(SPEC)
    workdir.write_tokenizer(CONFIG.data)
    workdir.write_init_report({"origin": "elsewhere"})
    workdir.write_evaluations([LINE])
    workdir.write_embedding({"features": np.zeros((2, 3))})
    workdir.write_start(START)
    workdir.cut_metrics(0)
    workdir.append_metrics(2, {"loss": np.float32(1.5), "rate": float("nan")})
    with open_trackers(CONFIG, workdir, 0) as trackers:
        trackers.training(2, {"loss": 1.5})
    workdir.write_report()


WRITTEN = {"config.json", "data.json", "tokenizer.json", "init_from.json", "evals.jsonl", "embedding.npz"}
WRITTEN |= {"starts.jsonl"}
WRITTEN |= {"metrics.jsonl", "report.html"}


def test_the_leading_process_writes_everything(tmp_path):
    workdir = Workdir(tmp_path)
    write_all(workdir)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= WRITTEN and not any(name.endswith(".tmp") or "tokenizer-" in name for name in names)
    assert workdir.is_run() and workdir.config() == CONFIG and workdir.data_spec() == SPEC
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 2, "loss": 1.5, "rate": None}
    assert [path for path in tmp_path.iterdir() if path.name.startswith("events")]


def test_other_processes_write_nothing(tmp_path):
    """They enter the folder that the leading process of their job holds."""
    folder = tmp_path / "run"
    follower = Workdir(folder, leads=False)
    with Workdir(folder).lock(), follower.lock():
        before = {path.name for path in folder.iterdir()}
        write_all(follower)
        assert {path.name for path in folder.iterdir()} == before == {".lease", ".lease.lock", "log.txt"}


@pytest.mark.parametrize("name", sorted(WRITTEN - {"metrics.jsonl", "report.html"}))
def test_a_crash_while_writing_keeps_the_old_file(name, tmp_path, monkeypatch):
    workdir = Workdir(tmp_path)
    write_all(workdir)
    before = (tmp_path / name).read_bytes()

    def crash(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    writes = {
        "config.json": lambda: workdir.write_config(CONFIG),
        "data.json": lambda: workdir.write_data(SPEC),
        "tokenizer.json": lambda: workdir.write_tokenizer(CONFIG.data),
        "init_from.json": lambda: workdir.write_init_report({"origin": "another"}),
        "evals.jsonl": lambda: workdir.write_evaluations([{**LINE, "step": 3}]),
        "starts.jsonl": lambda: workdir.write_start({**START, "step": 3}),
        "embedding.npz": lambda: workdir.write_embedding({"features": np.ones((2, 3))}),
    }
    with pytest.raises(KeyboardInterrupt):
        writes[name]()
    assert (tmp_path / name).read_bytes() == before


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """If a crash kept the rename but lost the content, the file would be empty."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    files.write_whole(tmp_path / "x", "text")
    temporary = f"x.{os.getpid()}.tmp"
    assert calls == [str(tmp_path / temporary), "rename", str(tmp_path)]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "y").write_text("text")
    calls.clear()
    files.move_whole(tmp_path / "folder", tmp_path / "new")
    assert calls == [str(tmp_path / "folder"), str(tmp_path / "folder" / "y"), "rename", str(tmp_path)]


def test_numbers_after_the_restored_step_are_cut_off(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.cut_metrics(0)
    for step in (2, 4, 6):
        workdir.append_metrics(step, {"seconds": 10.0 * step})
        workdir.write_evaluations([{**LINE, "step": step}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    assert workdir.cut_metrics(4) == (40, 20)
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert [json.loads(line)["step"] for line in (tmp_path / name).read_text().splitlines()] == [2, 4]


@pytest.mark.parametrize("line", ['{"step": 1, "ev', "3", '{"step": "\xff"}', "[1]", '{"step": true}', "\x00\x00"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "evals.jsonl"])
def test_a_damaged_line_in_the_middle_is_an_error_and_stays(name, line, tmp_path):
    """A crash cuts off the last line only, so another damaged line is not removed without a word."""
    workdir = Workdir(tmp_path)
    write_all(workdir)
    content = f"{json.dumps(LINE)}\n{line}\n{json.dumps(LINE)}\n".encode("latin-1")
    (tmp_path / name).write_bytes(content)
    other = "evals.jsonl" if name == "metrics.jsonl" else "metrics.jsonl"
    (tmp_path / other).write_text(f"{json.dumps(LINE)}\n" * 3)
    calls = [lambda: workdir.cut_metrics(2)]
    calls += [lambda: workdir.write_evaluations([LINE])] if name == "evals.jsonl" else []
    for call in calls:
        with pytest.raises(UserError, match=rf"{name}:2: got .*, must be a JSON object with 'step'.*; mend or remove"):
            call()
        assert (tmp_path / name).read_bytes() == content
        assert len((tmp_path / other).read_text().splitlines()) == 3, "nothing is cut before all files are read"


def with_tokenizer(path):
    values = CONFIG.to_dict()
    values["data"] = {key: value for key, value in values["data"].items() if value is not None}
    values["data"]["tokenizer"] = {"name": "file", "path": str(path)}
    return build(values).data


def test_a_tokenizer_replaces_the_files_of_an_earlier_one(tmp_path):
    """Its settings are replaced too, and a tokenizer inside the workdir is read before files are replaced."""
    source, workdir = tmp_path / "source", Workdir(tmp_path / "run")
    (source / "additional_chat_templates").mkdir(parents=True)
    workdir.path.mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    workdir.write_tokenizer(CONFIG.data)
    content = (workdir.path / "tokenizer.json").read_bytes()
    (workdir.path / "tokenizer.json").rename(source / "tokenizer.json")
    for _ in range(2):
        workdir.write_tokenizer(with_tokenizer(source / "tokenizer.json"))
        assert (workdir.path / "additional_chat_templates" / "tools.jinja").read_text() == "{{ messages }}"
    workdir.write_tokenizer(with_tokenizer(workdir.path / "tokenizer.json"))
    assert (workdir.path / "tokenizer.json").read_bytes() == content
    assert (workdir.path / "additional_chat_templates").is_dir()
    workdir.write_tokenizer(CONFIG.data)
    assert [path.name for path in workdir.path.iterdir()] == ["tokenizer.json"]


def test_a_folder_without_a_config_is_no_workdir(tmp_path):
    assert not Workdir(tmp_path).is_run()
    with pytest.raises(UserError, match=r"holds no config\.json; it is not a workdir"):
        Workdir(tmp_path).config()


@pytest.mark.parametrize("key", ["eval", "of", "metrics", "headline", "better"])
def test_a_line_of_an_evaluation_without_a_key_is_an_error(key, tmp_path):
    workdir = Workdir(tmp_path)
    write_all(workdir)
    line = {k: v for k, v in LINE.items() if k != key}
    (tmp_path / "evals.jsonl").write_text(json.dumps(line))
    calls = [workdir.write_report, workdir.evaluations, lambda: workdir.write_evaluations([LINE])]
    for call in calls:
        with pytest.raises(UserError, match=rf"evals\.jsonl:1: got .*, must be a JSON object with .*'{key}'"):
            call()


@pytest.mark.parametrize(
    "key, value",
    [
        ("vocab_size", "10"),
        ("max_len", -3),
        ("special_ids", None),
        ("content", [1]),
        ("streams", [1]),
        ("elements", {"image": {"shape": "a", "dtype": "uint8"}}),
        ("elements", {"image": {"shape": [8], "dtype": "no type"}}),
    ],
)
def test_values_of_wrong_kinds_in_the_description_of_the_data_are_one_line(tmp_path, key, value):
    """Before: accepted here, and a traceback later."""
    (tmp_path / "data.json").write_text(json.dumps(json.loads(SPEC.to_json()) | {key: value}))
    with pytest.raises(UserError, match=r"data\.json: not the description of the data of a run"):
        Workdir(tmp_path).data_spec()
