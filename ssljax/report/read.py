"""The files of a workdir as plain values."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.files import read_json


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a workdir. Missing files give empty values.

    Attributes:
        workdir: the folder.
        config, data: content of `config.json` and `data.json`.
        metrics: lines of `metrics.jsonl`, sorted by step.
        evals: lines of `evals.jsonl`; see `ssljax.evals.Evaluator.records`.
        embedding: arrays of `embedding.npz`: "xy" [N, 2] or "features" [N, D]; "label" [N], "images" [N, H, W, C].
    """

    workdir: pathlib.Path
    config: dict[str, Any]
    data: dict[str, Any]
    metrics: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    embedding: dict[str, np.ndarray]


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
        metrics=sorted(read_lines(workdir / "metrics.jsonl"), key=lambda line: line["step"]),
        evals=read_lines(workdir / "evals.jsonl"),
        embedding=_arrays(workdir / "embedding.npz"),
    )


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file, without a last line that a crash cut off.

    Raises:
        UserError: another line is damaged.
    """
    if not path.exists():
        return []
    text = path.read_text(errors="replace").split("\n")
    lines = []
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or "step" not in value:
                raise ValueError("not an object with a step")
            lines.append(value)
        except ValueError as error:
            if any(rest.strip() for rest in text[number:]):
                raise UserError(
                    f"{path}:{number}: got {line[:60]!r}, must be a JSON object with 'step'; mend or remove this line"
                ) from error
    return lines


def _json(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # zipfile, numpy and zlib raise different types for a damaged file
        raise UserError(f"{path}: not a readable .npz file ({error})") from error
