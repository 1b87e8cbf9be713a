"""Completion of commands, as a bash gives it on a tabulator."""

import shutil
import subprocess
import sys

import pytest

from ssljax import cli
from ssljax.config import shipped_configs

COMPLETE = """source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
name=$(complete -p ssljax | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$name ssljax "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path, capsys):
    """The script of a shell, as a file."""

    def script(shell):
        pytest.importorskip("shtab")
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        assert cli.main(["completion", shell]) == 0
        path = tmp_path / f"script.{shell}"
        path.write_text(capsys.readouterr().out)
        return path

    return script


def test_a_line_is_completed_in_bash(script, tmp_path, monkeypatch):
    path = script("bash")
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "mine.py").touch()
    (tmp_path / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)

    def completed(*words):
        done = subprocess.run(["bash", "-c", COMPLETE, "bash", path, "ssljax", *words], capture_output=True, text=True)
        return done.stdout.split()

    assert {"export", "embed", "eval"} == set(completed("e"))
    assert completed("train", "--wor") == ["--workdir"]
    assert completed("train", "--resume", "f") == ["force"]
    assert completed("list", "obj") == ["objectives"]
    assert completed("train", "--config", "mi") == ["mine.py"]
    assert set(completed("train", "--config", "configs/")) == set(shipped_configs())
    assert completed("embed", "ru") == ["runs"]
    assert completed("train", "--workdir", "runs/") == ["runs/one"]


def test_the_script_of_zsh_is_read_without_an_error(script):
    path = script("zsh")
    subprocess.run(["zsh", "-n", path], check=True)


def test_without_shtab_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == "error: completion needs the package shtab: pip install 'ssljax[completion]'\n"
