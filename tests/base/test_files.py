"""Paths of users, and writes that are whole or absent."""

import os
import pathlib

import numpy as np
import pytest

from ssljax.base import files
from ssljax.base.errors import UserError
from ssljax.base.files import reserve


@pytest.mark.parametrize(
    "path", ["gs://bucket/run", "gs:/bucket/run", "s3://b/x", "hdfs://h/x", "file:///tmp/x", "az://x"]
)
def test_addresses_are_refused(path):
    for given in (path, pathlib.Path(path)):
        with pytest.raises(UserError, match=r"^--workdir: got '.*cannot be used, give a folder of this machine"):
            files.local_folder(given, "--workdir")


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_paths_that_no_file_system_has(path):
    with pytest.raises(UserError, match=r"^--workdir: got .*must be the path of a folder"):
        files.local_folder(path, "--workdir")


def test_paths_of_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for path in ("run", "./run/", "/a/b [1]", "a:b", "lr=1e-3:seed", "x~", "ü", "a b", "C:x"):
        assert files.local_folder(path, "--workdir") == pathlib.Path(path)
    assert files.local_folder("~/run", "--workdir") == pathlib.Path("/home/somebody/run")
    with pytest.raises(UserError, match="home directory"):
        files.local_folder("~no-such-user-xyz/run", "--workdir")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    files.write_whole(tmp_path / "x", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(tmp_path / "x", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "old"}


def folder(path, **contents):
    path.mkdir()
    for name, content in contents.items():
        (path / name).write_text(content)
    return path


def test_a_folder_is_replaced_and_a_crash_loses_neither(tmp_path, monkeypatch):
    target = tmp_path / "templates"
    files.replace_folder(folder(tmp_path / "new", a="1"), target)
    files.replace_folder(folder(tmp_path / "new", b="2"), target)
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["templates"]
    replace = os.replace
    for crash_at in (1, 2):
        calls = []

        def crash(source, target, calls=calls, crash_at=crash_at):
            calls.append(source)
            if len(calls) == crash_at:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", crash)
        source = folder(tmp_path / f"new{crash_at}", c=str(crash_at))
        with pytest.raises(KeyboardInterrupt):
            files.replace_folder(source, target)
        kept = [path for path in tmp_path.rglob("b") if path.read_text() == "2"]
        assert kept and (source / "c").exists(), "the old and the new folder are both on the disk"
        monkeypatch.setattr(os, "replace", replace)
        if crash_at == 2:  # the next call finishes the work
            files.replace_folder(source, target)
            assert [path.name for path in target.iterdir()] == ["c"]
            assert not (tmp_path / ".templates.old").exists()


def test_an_equal_folder_is_left_alone(tmp_path, monkeypatch):
    files.replace_folder(folder(tmp_path / "new", a="1"), tmp_path / "templates")
    monkeypatch.setattr(os, "replace", None)
    files.replace_folder(folder(tmp_path / "new", a="1"), tmp_path / "templates")


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "null", b"\xff\xfe", "[" * 10**5, '{"a": 1}}', "1" * 10**4])
def test_a_file_that_is_no_json_object(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"config\.json: not (JSON|a JSON object)"):
        files.read_json(path)


@pytest.mark.parametrize("system", ["linux", "macos"])
def test_reserved_space_keeps_what_is_written(tmp_path, monkeypatch, system):
    """Before, a system without posix_fallocate wrote zeros over the header of an array."""
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (3, 1 << 20))
    array[1] = 7
    array.flush()
    if system == "macos":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    reserve(tmp_path / "a.npy")
    read = np.load(tmp_path / "a.npy")
    assert read.shape == (3, 1 << 20) and (read[1] == 7).all() and not read[[0, 2]].any()
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 3 << 20, "no holes are left"
