"""The folder of a run: who may write there, whether a config may go on in it, what is written whole or not at all."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ssljax import data
from ssljax.base.errors import UserError
from ssljax.base.locks import locked
from ssljax.config import RunConfig, build, difference
from ssljax.interop.workdir import blaming, read_json
from ssljax.train.metrics import EVALS_LOCK

log = logging.getLogger(__name__)

Resume = Literal["auto", "force"]


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
    """The workdir, made if missing, for this process alone; what is logged goes to its log.txt too.

    Raises:
        UserError: it cannot be made, or another process trains there.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "w")  # noqa: SIM115 (held for the whole run)
    except OSError as error:
        raise UserError(f"--workdir: cannot write {str(workdir)!r}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"--workdir: another process is training in {str(workdir)!r}") from error
        handler = logging.FileHandler(workdir / "log.txt")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
        package = logging.getLogger("ssljax")
        package.addHandler(handler)
        try:
            yield
        finally:
            package.removeHandler(handler)
            handler.close()


def check_workdir(workdir: pathlib.Path, config: RunConfig, spec: data.DataSpec, resume: Resume) -> None:
    """Refuse to continue another run, unless `resume` is "force"; remark on what else changed.

    A folder in which no step was taken is new, whatever its config.json says: its first start failed, perhaps for the
    very thing that the config says otherwise now (pictures of mixed shapes, a batch too large for the memory).

    Raises:
        UserError: the config differs in what is learned, or the data are not what they were, with the keys that differ.
    """
    if not _has_steps(workdir):
        return
    path = workdir / "config.json"
    if path.is_file():
        if resume != "force":
            _refuse(workdir, "another run", difference(read_config(workdir).identity(), config.identity()))
        for line in difference(read_json(path), config.to_dict()):
            log.info("changed since the last start: %s", line)
    if (workdir / "data.json").is_file() and resume != "force":
        changed = difference(read_json(workdir / "data.json"), json.loads(spec.to_json()))
        _refuse(workdir, "a run on other data", changed)


def _has_steps(workdir: pathlib.Path) -> bool:
    """Whether a run left anything but its config: a checkpoint, be it damaged, or a line of numbers."""
    told = [workdir / name for name in ("metrics.jsonl", "evals.jsonl")]
    return any((workdir / "checkpoints").glob("[0-9]*")) or any(p.is_file() and p.stat().st_size for p in told)


def read_config(workdir: pathlib.Path) -> RunConfig:
    """The config of a workdir.

    Raises:
        UserError: it is damaged, or holds what this version does not know.
    """
    path = workdir / "config.json"
    values = read_json(path)
    with blaming(path):
        return build(values)


def _refuse(workdir: pathlib.Path, what: str, changed: list[str]) -> None:
    if changed:
        shown = "; ".join(changed[:8]) + (f"; and {len(changed) - 8} more" if len(changed) > 8 else "")
        raise UserError(f"--workdir: {str(workdir)!r} holds {what} ({shown}); take a new folder, or --resume=force")


def write_json(path: pathlib.Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2))
    os.replace(temporary, path)


def write_evals(workdir: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to evals.jsonl in the place of earlier ones on the same evaluation, subject and step."""
    path = workdir / "evals.jsonl"
    new = {(line["step"], line["eval"], line["of"]) for line in lines}
    with locked(workdir / EVALS_LOCK):
        old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        kept = [line for line in old if (line["step"], line["eval"], line["of"]) not in new]
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in [*kept, *lines]))
        os.replace(temporary, path)
