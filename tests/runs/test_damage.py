"""Every file of a workdir, damaged in several ways: each command works or says one line."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest
from tiny_runs import LM

from ssljax import cli, run, runs
from ssljax.base.errors import UserError
from ssljax.config import build
from ssljax.runs.workdir import Workdir

CONFIG = {
    **LM,
    "log": {"progress": False, "every_steps": 1, "stall_seconds": None},
    "evals": {"perplexity": {"ngrams": False, "test_split": "train[:8]"}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a run of text, and its config."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "x.jsonl").write_text(
        "".join(json.dumps({"text": f"a small step {i} of a model"}) + "\n" for i in range(99))
    )
    data = {"source": f"jsonl:{folder}/x.jsonl", "seq_len": 16, "cache_dir": str(folder / "cache")}
    config = {**CONFIG, "data": {**data, "tokenizer": {"name": "bpe", "vocab_size": 280}}}
    run.train(config, folder / "run")
    import numpy as np

    np.savez(folder / "run" / "embedding.npz", features=np.eye(4, 3))
    return folder / "run", config


def half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def high_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + b"\xff" + content[len(content) // 3 :])


def folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": half,
    "high byte": high_byte,
    "number": lambda path: path.write_bytes(b"3\n"),
    "list": lambda path: path.write_bytes(b"[1, 2]\n"),
    "other keys": lambda path: path.write_bytes(b'{"a": 1}\n'),
    "zeros": lambda path: path.write_bytes(bytes(100)),
    "gone": pathlib.Path.unlink,
    "folder": folder,
}
FILES = ("config.json", "data.json", "metrics.jsonl", "evals.jsonl", "tokenizer.json", "embedding.npz", "starts.jsonl")
# Files that are written and never read.
WRITTEN = ("report.html", "log.txt", ".lease", ".lease.lock", ".evals.lock")


def commands(folder, config):
    """The commands up to the point at which all files are read."""

    def resume():
        built = build(config)
        workdir = Workdir(folder)
        assembly = runs.assemble(workdir.continued(built))
        workdir.check(built, assembly.spec, "auto")
        workdir.cut_metrics(2)

    def evaluate():
        with runs.open_run(Workdir(folder)) as (assembly, _):
            from ssljax.runs.evaluation import make_evaluator

            evaluator = make_evaluator(assembly)
            evaluator.check(assembly.program.shapes.params, assembly.program.shapes.extra)
            Workdir(folder).write_evaluations([])

    return {
        "train": resume,
        "eval": evaluate,
        "report": lambda: Workdir(folder).write_report(),
        "generate": lambda: runs.language_model(folder).encode("a step"),
    }


def test_every_file_of_a_workdir_is_damaged_here(finished):
    names = {p.name for p in finished[0].iterdir() if p.is_file() and not p.name.startswith("events")}
    assert names <= {*FILES, *WRITTEN}, "a new file of the workdir has no test of its damage"


# Every run of the tests damages each file in three of the nine ways.
CASES = [
    pytest.param(name, damage, marks=pytest.mark.full if (i + j) % 3 else ())
    for i, name in enumerate(FILES)
    for j, damage in enumerate(DAMAGES)
]


@pytest.mark.parametrize("name, damage", CASES)
def test_a_damaged_file_is_one_line(finished, tmp_path, name, damage):
    for command in ("train", "eval", "report", "generate"):
        folder = tmp_path / command
        shutil.copytree(finished[0], folder)
        DAMAGES[damage](folder / name)
        before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        try:
            commands(folder, finished[1])[command]()
        except UserError as error:
            assert "\n" not in str(error) and str(error), (command, error)
            assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before, "nothing was changed"
        except OSError as error:  # the command line prints one line
            assert error.strerror and damage == "folder", (command, error)


@pytest.fixture
def read_only(finished, tmp_path):
    """A workdir on a disk that cannot be written to."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "none", str(mount)]).returncode:
        pytest.skip("needs root with the right to mount a small tmpfs")
    try:
        shutil.copytree(finished[0], mount / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        yield mount / "run"
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_eval_of_a_read_only_workdir_prints_its_table(read_only, capsys, caplog):
    lines = runs.evaluate(read_only)
    assert {line["of"] for line in lines} >= {"trained", "untrained"}
    assert "perplexity" in capsys.readouterr().out
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    for name in ("evals.jsonl", "report.html"):
        assert sum(w.startswith(f"{name} is not written: Read-only") for w in warnings) == 1, warnings


def test_report_in_a_read_only_folder_is_one_line(read_only, capsys):
    assert cli.main(["report", str(read_only)]) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "ead-only file system" in error and len(error.splitlines()) == 1
