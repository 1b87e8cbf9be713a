"""Every command on odd folders, files and arguments: one line, exit code 2, and nothing is written there."""

import os

import pytest

from ssljax import cli

CONFIG = """def get_config(arg=''):
    return {
        "model": {"name": "vit", "preset": None, "width": 8, "depth": 1, "heads": 2, "patch_size": 4},
        "objective": {"name": "simclr"}, "data": {"source": "builtin:digits"}, "optimizer": {"name": "adamw"},
        "steps": 1, "batch_size": 8, "log": {"progress": False, "tensorboard": False},
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
        "s3": "s3://bucket",
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
        if command == "report" and name == "metrics only":
            continue  # a run that has only begun has a report
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
