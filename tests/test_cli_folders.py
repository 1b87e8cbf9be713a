"""Every command on odd folders, files and arguments: one line, exit code 2, and nothing is written there."""

import json
import os
import pathlib
import re

import pytest
from daily import on_day

from ssljax import cli, runs

CONFIG = """def get_config(arg=''):
    return {
        "model": {"name": "vit", "preset": None, "width": 8, "depth": 1, "heads": 2, "patch_size": 4},
        "objective": {"name": "simclr"}, "data": {"source": "builtin:digits"}, "optimizer": {"name": "adamw"},
        "steps": 1, "batch_size": 8,
        "log": {"progress": False, "trackers": [], "pictures": False, "stall_seconds": None},
    }
"""
DEEP = "[" * 20_000 + "]" * 20_000


def write_folders(root):
    """Folders and files that are no workdir and no model, {name: path}."""
    for name, files in {
        "empty": {},
        "other files": {"notes.txt": "x"},
        "config is a folder": {"config.json/x": "", "data.json/x": ""},
        "config is no JSON": {"config.json": "{", "data.json": "{}"},
        "config is a number": {"config.json": "3", "data.json": "3"},
        "config is a list": {"config.json": "[]", "data.json": "[]"},
        "config is empty": {"config.json": "{}", "data.json": "{}"},
        "config is deep": {"config.json": DEEP, "data.json": DEEP},
        "config has nan": {"config.json": '{"objective": NaN, "model": NaN}', "data.json": "{}"},
        "config is binary": {"config.json": b"\xff\xfe\x00", "data.json": b"\xff"},
        "config has strange values": {"config.json": '{"objective": 3, "model": [], "steps": {}}', "data.json": "{}"},
        "config names modules": {
            "config.json": '{"objective": {"name": "os:path"}, "model": {"name": "os:path"}, "batch_size": 4}',
            "data.json": "{}",
        },
        "data is missing": {"config.json": '{"objective": {"name": "simclr"}, "model": {"name": "vit"}}'},
        "model of an unknown kind": {"config.json": '{"model_type": "nothing"}'},
        "model type is a list": {"config.json": '{"model_type": ["bert"]}'},
        "model without fields": {"config.json": '{"model_type": "bert"}', "model.safetensors": b"x"},
        "metrics only": {"metrics.jsonl": '{"step": 1, "loss": 2.0}\n'},
        "evals are damaged": {"evals.jsonl": "3\n3\n"},
    }.items():
        for file, content in ({".keep": ""} | files if files else {}).items():
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        (root / name).mkdir(exist_ok=True)
    (root / "a file").write_text("x")
    (root / "dangling").symlink_to(root / "nowhere")
    (root / "loop").symlink_to(root / "loop")
    odd = {path.name: str(path) for path in sorted(root.iterdir())}
    odd |= {"missing": str(root / "missing"), "below a file": str(root / "a file" / "x"), "nothing": ""}
    odd |= {
        "long": str(root / ("n" * 300)),
        "bucket": "gs://bucket/run",
        "file": "file:///run",
        "user": "~no-such-user/x",
    }
    return odd | {"line": str(root / "two\nlines"), "surrogate": str(root / "\udc80")}


COMMANDS = {
    "eval": ["eval", "--workdir", "{}"],
    "generate": ["generate", "{}", "--prompt", "x"],
    "fill-mask": ["fill-mask", "{}", "--prompt", "x"],
    "export": ["export", "{}", "{out}"],
    "import": ["import", "{}", "{out}"],
    "report": ["report", "{}"],
    "sweep": ["sweep", "--status", "--workdir", "{}"],
}


def call(capsys, arguments):
    capsys.readouterr()
    code = cli.main(arguments)
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err, err
    return code, lines


@pytest.mark.parametrize("command", COMMANDS)
def test_odd_folders(command, tmp_path, capsys):
    root = tmp_path / "odd"
    root.mkdir()
    failed = []
    for name, folder in write_folders(root).items():
        if command == "report" and name in ("metrics only", "config names modules", "data is missing"):
            continue  # parts of a run have a report
        before = sorted(os.listdir(folder)) if os.path.isdir(folder) else None
        out = tmp_path / "out"
        arguments = [part.format(folder, out=out) if "{" in part else part for part in COMMANDS[command]]
        try:
            code, lines = call(capsys, arguments)
        except BaseException as error:
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        if code != 2 or len(lines) != 1:
            failed.append(f"{name}: exit code {code}, {lines}")
        elif before is not None and sorted(os.listdir(folder)) != before:
            failed.append(f"{name}: files were written or removed")
        elif out.exists():
            failed.append(f"{name}: the output exists")
    assert not failed, "\n".join(failed)


def write_config(path):
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.parametrize("name", ["a file", "below a file", "long", "dangling", "loop", "bucket", "file", "nothing"])
def test_workdirs_that_cannot_be_made(name, tmp_path, capsys):
    root = tmp_path / "odd"
    root.mkdir()
    folder = write_folders(root)[name]
    code, lines = call(capsys, ["train", "--config", write_config(tmp_path / "c.py"), "--workdir", folder])
    assert code == 2 and len(lines) == 1, lines
    assert not pathlib.Path("gs:").exists() and not pathlib.Path("file:").exists()


@on_day(1, 3)
def test_a_run_under_an_odd_path_trains_resumes_and_is_read(tmp_path, capsys, monkeypatch):
    """A relative path through a symbolic link, with characters of patterns, a space, and a slash at its end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real [a-z]*?").mkdir()
    (tmp_path / "link ü").symlink_to(tmp_path / "real [a-z]*?")
    folder = "./link ü/run [1]/"
    config = write_config(tmp_path / "c.py")
    for steps in (1, 2):
        arguments = ["train", "--config", config, "--workdir", folder, f"--config.steps={steps}"]
        assert call(capsys, arguments) == (0, [])
    run = tmp_path / "real [a-z]*?" / "run [1]"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["1", "2"]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1:] == [2]
    assert runs.read_trained(folder).step == 2
    assert not [path for path in run.iterdir() if "trial" in path.name]
    # Models are written and read under the home directory, and not into a folder `gs:`.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert call(capsys, ["export", folder, "~/out"]) == (0, []) == call(capsys, ["import", "~/out", "~/copy"])
    assert (tmp_path / "home/out/model.safetensors").exists() and (tmp_path / "home/copy/ssljax.json").exists()
    for command in (["export", folder], ["import", "~/out"]):
        code, lines = call(capsys, [*command, "gs://bucket/out"])
        assert code == 2 and len(lines) == 1
    assert not (tmp_path / "gs:").exists() and not (tmp_path / "~").exists()


ARGUMENTS = {
    "nothing": ([], r"command.*`ssljax --help`"),
    "unknown command": (["trian"], r"invalid choice: 'trian'"),
    "no workdir": (["train", "--config", "c.py"], r"--workdir; see `ssljax train --help`"),
    "step is text": (["eval", "--workdir", "x", "--step", "last"], r"--step: invalid int value: 'last'"),
    "unknown list": (["list", "modells"], r"invalid choice: 'modells'"),
    "unknown option": (["report", "x", "--fast"], r"--fast: unknown argument"),
    "override of eval": (["eval", "--workdir", "x", "--config.steps=3"], r"--config\.steps=3: unknown argument"),
    "unknown key": (["list", "keys", "model.vit.widht"], r"widht: unknown key.*'width'"),
    "empty part": (["list", "keys", "model..vit"], r"model\.: unknown name"),
    "prompt is missing": (["generate", "x"], r"--prompt: missing"),
    "file is missing": (["generate", "x", "--file", "nowhere.txt"], r"--file: cannot read"),
    "temperature": (["generate", "x", "--prompt", "a", "--temperature", "nan"], r"temperature: got nan"),
    "tokens": (["generate", "x", "--prompt", "a", "--max-new-tokens", "-3"], r"max_new_tokens: got -3"),
    "huge number": (
        ["generate", "x", "--prompt", "a", "--max-new-tokens", "9" * 400],
        r"max_new_tokens: got an integer",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_wrong_arguments(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = ARGUMENTS[case]
    code, lines = call(capsys, arguments)
    assert code == 2 and len(lines) == 1 and re.search(message, lines[0]), lines


def test_a_full_disk_and_a_missing_permission_are_one_line(capsys, monkeypatch):
    for number, text in ((28, "No space left on device; free some"), (13, "Permission denied"), (30, "Read-only file")):

        def fail(*_, number=number):
            raise OSError(number, os.strerror(number), "/some/file")

        monkeypatch.setattr(cli, "_run", fail)
        code, lines = call(capsys, ["list", "models"])
        assert code == 2 and len(lines) == 1 and f"/some/file: {text}" in lines[0], lines
