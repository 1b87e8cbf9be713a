"""The files of a workdir as plain values."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.files import read_json
from ssljax.report import pictures


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a workdir. Missing files give empty values.

    Attributes:
        workdir: the folder.
        config, data: content of `config.json` and `data.json`.
        metrics: lines of `metrics.jsonl`, sorted by step.
        evals: lines of `evals.jsonl`; see `ssljax.evals.Evaluator.records`.
        starts: lines of `starts.jsonl`; see `ssljax.runs.starts`.
        embedding: arrays of `embedding.npz`: "xy" [N, 2] or "features" [N, D]; "label" [N], "images" [N, H, W, C].
        pictures: content of `pictures/`.
    """

    workdir: pathlib.Path
    config: dict[str, Any]
    data: dict[str, Any]
    metrics: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    embedding: dict[str, np.ndarray]
    pictures: pictures.Shown


def read_run(workdir: str | pathlib.Path) -> Run:
    """Reads a workdir.

    Raises:
        UserError: the folder does not exist or is not a workdir, or a file is damaged.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such folder, must be a workdir of `ssljax train`")
    if not any((workdir / name).exists() for name in ("config.json", "metrics.jsonl", "evals.jsonl")):
        raise UserError(
            f"{workdir}: has no config.json, metrics.jsonl or evals.jsonl; is it a workdir of `ssljax train`?"
        )
    return Run(
        workdir=workdir,
        config=_json(workdir / "config.json"),
        data=_json(workdir / "data.json"),
        metrics=sorted(read_lines(workdir / "metrics.jsonl", METRICS), key=lambda line: line["step"]),
        evals=read_lines(workdir / "evals.jsonl", EVALUATIONS),
        starts=read_lines(workdir / "starts.jsonl", STARTS),
        embedding=_arrays(workdir / "embedding.npz"),
        pictures=pictures.read(workdir / "pictures"),
    )


# The keys of a line and the types of their values, which every reader needs.
METRICS = {"step": int}
STARTS = {"step": int, "time": str, "mesh": dict, "seconds": dict}
EVALUATIONS = {"step": int, "eval": str, "of": str, "metrics": dict, "headline": list, "better": str}


def read_lines(path: pathlib.Path, keys: Mapping[str, type]) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file, without a last line that a crash cut off.

    Args:
        path: the file; it may be missing.
        keys: keys that every line must have, with the types of their values.

    Raises:
        UserError: another line is damaged, or the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        text = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    lines = []
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if any(rest.strip() for rest in text[number:]):
                raise _damaged(path, number, line, keys) from error
            continue
        if not isinstance(value, dict) or any(not _is(value.get(key), kind) for key, kind in keys.items()):
            raise _damaged(path, number, line, keys)
        lines.append(value)
    return lines


def _is(value: Any, kind: Any) -> bool:
    """Returns True if a value has a type; a mapping must hold numbers and null alone, a list texts."""
    if kind is list:
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    if kind is dict:
        return isinstance(value, dict) and all(number is None or _is(number, int | float) for number in value.values())
    return isinstance(value, kind) and not isinstance(value, bool)


def _damaged(path: pathlib.Path, number: int, line: bytes, keys: Mapping[str, type]) -> UserError:
    names = ", ".join(repr(key) for key in keys)
    shown = line[:60].decode("utf-8", errors="replace")
    return UserError(f"{path}:{number}: got {shown!r}, must be a JSON object with {names}; mend or remove this line")


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.exists() else {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
        if not {"xy", "features"} & found.keys():
            raise ValueError("no array 'xy' or 'features'")
        return found
    except Exception as error:  # zipfile, numpy and zlib raise different types for a damaged file
        raise UserError(f"{path}: not a readable .npz file ({error})") from error
