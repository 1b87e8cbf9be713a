"""`ssljax sweep`, `runs` and `compare` as a newcomer types them, with small programs in place of trainers."""

import csv
import re
import sqlite3

import pytest
import test_driver
import test_run

from ssljax import cli

CONFIG = {**test_run.TINY, "mesh": {"data": 1}, "steps": 9}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls a command in an empty folder with the config `tiny.py`; returns (exit code, stdout, lines of error)."""
    test_driver.use_fake(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "tiny.py").write_text(f"def get_config(arg=''):\n    return {CONFIG!r}\n")

    def call(line):
        capsys.readouterr()
        code = cli.main(line.split())
        out, err = capsys.readouterr()
        return code, out, [text for text in err.splitlines() if text.startswith(("error: ", "stopped: "))]

    return call


SWEEP = "sweep --config tiny.py --workdir store"


def test_a_first_sweep(call, tmp_path):
    command = f"{SWEEP} --grid objective.temperature=0.1,0.5 --seeds 2"
    code, out, _ = call(f"{command} --dry-run")
    assert code == 0 and "temperature=0.5,seed=1" in out and "4 runs, " in out
    assert not (tmp_path / "store").exists()
    code, out, errors = call(command)
    assert (code, errors) == (0, []) and "4 runs: 4 done" in out
    assert sorted(path.name for path in (tmp_path / "store/tiny").iterdir()) == [
        f"temperature={t},seed={s}" for t in (0.1, 0.5) for s in (0, 1)
    ]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store/runs").rglob("metrics.jsonl")}
    assert call(command)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}, "nothing is trained twice"
    for look in ("sweep --workdir store --status", "sweep --workdir store --watch", "runs store"):
        code, out, _ = call(look)
        assert code == 0 and "temperature=0.1,seed=1" in out and "done" in out, look
    code, out, _ = call("compare store/tiny")
    assert code == 0 and re.search(r"0\.5 +│ ?2 ", out), "two seeds in a row"
    assert (tmp_path / "comparison.html").exists()
    assert call("runs store --csv table.csv")[0] == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["objective.temperature"], row["seed"], row["step"]) for row in rows] == [
        (t, s, "9") for t in ("0.1", "0.5") for s in "01"
    ]
    assert all(float(row["flops"]) > 0 and int(row["params"]) >= int(row["params_non_embedding"]) for row in rows)
    code, out, _ = call(f"{command} --dry-run --config.batch_size=16")
    assert "the median of 4 runs that are done here" in out


def test_a_failed_run_is_exit_code_1_and_is_tried_again_on_demand(call):
    command = f"{SWEEP} --grid seed=0,102"
    code, out, errors = call(command)
    assert code == 1 and errors == [] and "a native library says: no" in out and "1 done, 1 failed" in out
    assert call(command)[0] == 1
    code, out, _ = call("sweep --workdir store --retry")
    assert code == 0 and "1 failed runs are planned again" in out and "2 done" in out


CASES = {
    "misspelled key": ("--grid objective.temprature=0.1,0.2", r"objective\.temprature: unknown key.*'temperature'"),
    "wrong type": (
        "--grid objective.temperature=0.1,warm",
        r"objective\.temperature: got 'warm' \(str\), must be a numb",
    ),
    "out of range": ("--grid objective.temperature=0.1,-1", r"objective\.temperature: got -1.*must be > 0"),
    "no values": ("--grid objective.temperature=", r"--grid: objective\.temperature has no values"),
    "no key": ("--grid 0.1,0.2", r"--grid: got '0\.1,0\.2', must be KEY=VALUE"),
    "the same run": ("--grid log.every_steps=1,2", r"log\.every_steps=1 and 2 are the same run"),
    "zip of two lengths": ("--zip seed=1,2 --zip batch_size=8", "equally many values"),
    "unknown distribution": ("--random seed=normal(0,1) --runs 2", r"study\.random\.seed: got 'normal\(0,1\)'"),
    "draws without a number": ("--random seed=integers(0,9)", "--runs: missing"),
    "jobs": ("--jobs 0", "--jobs: got 0, must be at least 1"),
    "slurm elsewhere": ("--slurm a=1", "--slurm: is for --executor slurm"),
    "unknown study": ("--name a/b", "--name: got 'a/b', must be letters"),
    "data that are missing": ("--config.data.source=npz:/nowhere.npz", "nowhere.npz"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_one_line_before_anything_is_made(case, call, tmp_path):
    words, said = CASES[case]
    code, _, errors = call(f"{SWEEP} {words}")
    assert code == 2 and len(errors) == 1 and re.search(said, errors[0]), errors
    assert not (tmp_path / "store").exists()


def test_stores_that_are_none_or_others(call, tmp_path):
    code, _, errors = call("sweep --workdir store --status")
    assert code == 2 and "has no ledger.sqlite; it is not a store" in errors[0]
    assert call("sweep --workdir store --seeds 2")[2][0].startswith("error: --config: missing; --seeds needs")
    assert call(f"{SWEEP} --grid seed=0,1")[0] == 0
    assert "has another study 'tiny'" in call(f"{SWEEP} --grid seed=5,6")[2][0]
    assert "has no study 'x' (there are: tiny)" in call("sweep --workdir store --status --name x")[2][0]
    assert call(f"{SWEEP} --grid seed=0,1,2 --name other")[0] == 0, "two studies in one store"
    (tmp_path / "store/ledger.sqlite").write_bytes(b"no database" * 1000)
    code, _, errors = call("sweep --workdir store --status")
    assert code == 2 and "damaged" in errors[0] and "the runs are safe" in errors[0]
    (tmp_path / "store/ledger.sqlite").unlink()
    assert call(f"{SWEEP} --grid seed=0,1")[0] == 0, "what is done is found again"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    assert "is the workdir of one run" in call("sweep --config tiny.py --workdir run")[2][0]
    with sqlite3.connect(tmp_path / "store/ledger.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    assert "a ledger of format 99, must be a ledger of format 2" in call("runs store")[2][0]
