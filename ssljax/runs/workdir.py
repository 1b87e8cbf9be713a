"""The folder of a run: one object that reads and writes its files."""

import contextlib
import contextvars
import dataclasses
import errno
import io
import json
import logging
import math
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ssljax import data, report
from ssljax.base.buckets import BucketError, is_address
from ssljax.base.errors import UserError, located
from ssljax.base.files import append_line, flush, local_folder, move_whole, read_json, replace_folder, write_whole
from ssljax.base.locks import leased, locked
from ssljax.config import RunConfig, build, difference
from ssljax.report.read import EVALUATIONS, METRICS, STARTS, read_lines
from ssljax.runs import mirror
from ssljax.train.checkpoint import Source

log = logging.getLogger(__name__)

Resume = Literal["auto", "force"]

# The folder that lines of the log belong to, and True if they are for its log.txt alone; None: for all folders that
# this process trains in.
_SPEAKING: contextvars.ContextVar[tuple[pathlib.Path, bool] | None] = contextvars.ContextVar("speaking", default=None)

_OPEN: dict[logging.Handler, int] = {}  # the files log.txt that are open -> the level of the log before the first one


class Cut(NamedTuple):
    """The time of a run that is continued, in seconds, by its logged lines.

    Attributes:
        kept: until the step from which it continues.
        lost: after it, for steps that are done again.
    """

    kept: float
    lost: float


class Workdir:
    """The folder of a run. Files are written whole or not at all, and flushed to the disk.

    Exceptions: metrics.jsonl, log.txt and the TensorBoard events grow line by line, and a crash may cut off the last
    line; `ssljax.train.checkpoint.Checkpoints` writes checkpoints/ and damaged-STEP.

    The workdir at an address (`gs://bucket/run`) has a mirror on this machine, whose files are sent to the bucket.

    Attributes:
        path: the folder, with `~` replaced; of an address, its mirror.
        name: the folder or address, for messages.
        leads: True in the leading process of a job, the only one that writes. Elsewhere a write does nothing.
    """

    def __init__(self, path: str | pathlib.Path, leads: bool | None = None):
        self._mirror = mirror.opened(str(path)) if is_address(path) else None
        self.path = self._mirror.folder if self._mirror else local_folder(path, "--workdir")
        self.name = self._mirror.address if self._mirror else str(self.path)
        self.leads = jax.process_index() == 0 if leads is None else leads

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder if it is missing, keeps other jobs out, and copies the log to log.txt.

        The leading process holds the lease for its job; the other processes of the job do nothing here.

        Raises:
            UserError: the folder cannot be made, or another job is training there; or the bucket refuses.
        """
        if not self.leads:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._mirror.held() if self._mirror else leased(self.path / ".lease"))
            except BlockingIOError as error:
                raise UserError(f"--workdir: another process is training in {self.name!r} ({error})") from error
            except OSError as error:
                raise UserError(f"--workdir: cannot write {self.name!r}: {error.strerror}") from error
            stack.enter_context(self._log_file())
            yield

    def sending(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context that takes the checkpoints of a bucket and sends what changes; nothing for a folder.

        All processes of a job enter it, after the leading one holds the lock.

        Raises:
            UserError: something could not be sent, or taken.
        """
        return self._mirror.sending() if self._mirror else contextlib.nullcontext()

    @property
    def source(self) -> Source | None:
        """The source of the checkpoints of an address; None for a folder."""
        return self._mirror

    def take_checkpoints(self, step: int | None = None) -> None:
        """Takes the checkpoints of a bucket, to be read with `source`; a folder of this machine has them.

        Args:
            step: the only checkpoint that is needed; None: all.

        Raises:
            UserError: there is no checkpoint of `step`, or the bucket cannot be read.
        """
        if self._mirror and not self._mirror.is_sending:
            self._mirror.take_checkpoints(step)

    @contextlib.contextmanager
    def _log_file(self) -> Iterator[None]:
        handler = logging.FileHandler(self.path / "log.txt")
        handler.addFilter(self._hears)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
        package = logging.getLogger("ssljax")
        level = next(iter(_OPEN.values()), package.level)
        if not package.isEnabledFor(logging.INFO):  # a program that has not set up its log gets the file all the same
            package.setLevel(logging.INFO)
        package.addHandler(handler)
        _OPEN[handler] = level
        try:
            yield
        finally:
            package.removeHandler(handler)
            del _OPEN[handler]
            if not _OPEN:
                package.setLevel(level)
            handler.close()

    @contextlib.contextmanager
    def speaking(self, quiet: bool = False) -> Iterator[None]:
        """Keeps lines of the log that are written inside out of the log.txt of other folders, for runs of a stack.

        Args:
            quiet: True: the lines are not printed either.
        """
        token = _SPEAKING.set((self.path, quiet))
        try:
            yield
        finally:
            _SPEAKING.reset(token)

    def _hears(self, record: logging.LogRecord) -> bool:
        """Returns True if a line of the log belongs into the log.txt of this folder."""
        spoken = _SPEAKING.get()
        if spoken is None:
            return True
        record.quiet = spoken[1] or getattr(record, "quiet", False)  # handlers that print come after this one
        return spoken[0] == self.path

    # Reading

    def is_run(self) -> bool:
        """Returns True if the folder holds the config and the data of a run."""
        return (self.path / "data.json").is_file() and self._describes_run(self.path / "config.json")

    def _describes_run(self, path: pathlib.Path) -> bool:
        values = read_json(path) if path.is_file() else {}
        return all(isinstance(values.get(group), dict) for group in ("objective", "model"))

    def config(self) -> RunConfig:
        """Returns the checked config of the run.

        Raises:
            UserError: config.json is missing or damaged, or has a key that this version does not know.
        """
        values = self.config_values()
        with self.blaming_config():
            return build(values)

    def config_values(self) -> dict[str, Any]:
        """Returns the content of config.json.

        Raises:
            UserError: config.json is missing or damaged.
        """
        path = self.path / "config.json"
        if not path.is_file():
            raise UserError(f"--workdir: {self.name!r} holds no config.json; it is not a workdir of `ssljax train`")
        return read_json(path)

    def data_spec(self) -> data.DataSpec:
        """Returns the description of the training data.

        Raises:
            UserError: data.json is missing or damaged.
        """
        path = self.path / "data.json"
        if not path.is_file():
            raise UserError(f"--workdir: {self.name!r} holds no data.json; it is not a workdir of `ssljax train`")
        values = read_json(path)
        try:
            return data.DataSpec.from_json(json.dumps(values))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: not the description of the data of a run ({located(error)})") from error

    def continued(self, config: RunConfig) -> RunConfig:
        """Returns the config of a run with its tokenizer as an earlier start wrote it, if `config` has the same one."""
        if not self._has_steps() or not (self.path / "config.json").is_file():
            return config
        earlier = self.config_values().get("data")
        if not isinstance(earlier, dict) or earlier.get("tokenizer") != config.to_dict()["data"]["tokenizer"]:
            return config
        known = dataclasses.replace(config.data, tokenizer=self.tokenizer(config.data.tokenizer))
        return dataclasses.replace(config, data=known)

    def tokenizer(self, config: data.TokenizerConfig) -> data.TokenizerConfig:
        """Returns the config of the tokenizer that an earlier start wrote; `config` if there is none.

        A tokenizer is trained once: training it again on changed files would give the same ids other meanings.

        Raises:
            UserError: the run reads text, and its tokenizer is missing.
        """
        file = next(
            (self.path / name for name in ("tokenizer.json", "tokenizer.model") if (self.path / name).is_file()), None
        )
        if config.name == "bytes":
            return config
        if file is None and (self.path / "data.json").is_file() and self.data_spec().vocab_size is not None:
            raise UserError(
                f"{self.path / 'tokenizer.json'}: missing, the run cannot be read without it; restore a copy"
            )
        return config if file is None else data.TokenizerConfig(name="file", path=str(file))

    @contextlib.contextmanager
    def blaming_config(self) -> Iterator[None]:
        """Makes errors raised inside name config.json, which an earlier run wrote, as their cause."""
        try:
            yield
        except UserError as error:
            raise UserError(
                f"{self.path / 'config.json'}: {error}; use the version of ssljax that wrote it, or "
                f"`ssljax train --resume=force`"
            ) from error

    def check(self, config: RunConfig, spec: data.DataSpec, resume: Resume) -> None:
        """Refuses to continue another run, unless `resume` is "force". Allowed changes are logged.

        A folder without a completed step counts as new, whatever its config.json says: the first start failed, and
        the new config may correct the reason (images of mixed shapes, a batch too large for the memory).

        Raises:
            UserError: the identity of the config or the data changed; the message lists the keys that differ. Or a line
                of metrics.jsonl, evals.jsonl or starts.jsonl is damaged.
        """
        self.starts()
        if not self._has_steps():
            return
        self.metrics()
        self.evaluations()
        if (self.path / "config.json").is_file():
            if resume != "force":
                self._refuse("another run", difference(self.config().identity(), config.identity()))
            for line in difference(self.config_values(), config.to_dict()):
                log.info("changed since the last start: %s", line)
        if (self.path / "data.json").is_file() and resume != "force":
            earlier, now = read_json(self.path / "data.json"), json.loads(spec.to_json())
            if "word_starts" not in earlier:  # they follow from the tokenizer; earlier versions did not write them
                now.pop("word_starts")
            changed = difference(earlier, now)
            self._refuse("a run on other data", changed)

    def evaluations(self) -> list[dict[str, Any]]:
        """Returns the lines of evals.jsonl.

        Raises:
            UserError: a line is damaged.
        """
        return read_lines(self.path / "evals.jsonl", EVALUATIONS)

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl.

        Raises:
            UserError: a line is damaged.
        """
        return read_lines(self.path / "metrics.jsonl", METRICS)

    def starts(self) -> list[dict[str, Any]]:
        """Returns the lines of starts.jsonl.

        Raises:
            UserError: a line is damaged.
        """
        return read_lines(self.path / "starts.jsonl", STARTS)

    def _has_steps(self) -> bool:
        """Returns True if a run left a checkpoint (perhaps damaged) or a line of metrics."""
        logs = [self.path / name for name in ("metrics.jsonl", "evals.jsonl")]
        return any(self.checkpoints.glob("[0-9]*")) or any(p.is_file() and p.stat().st_size for p in logs)

    def _refuse(self, content: str, changed: list[str]) -> None:
        if changed:
            shown = "; ".join(changed[:8]) + (f"; and {len(changed) - 8} more" if len(changed) > 8 else "")
            raise UserError(f"--workdir: {self.name!r} holds {content} ({shown}); take a new folder, or --resume=force")

    # Writing

    def write_description(self, config: RunConfig, spec: data.DataSpec, data_config: data.DataConfig) -> None:
        """Writes config.json and data.json, and the tokenizer of `data_config` if the data have text."""
        self.write_config(config)
        self.write_data(spec)
        if spec.vocab_size is not None:
            self.write_tokenizer(data_config)

    def write_config(self, config: RunConfig) -> None:
        self._write_json("config.json", config.to_dict())

    def write_data(self, spec: data.DataSpec) -> None:
        self._write_json("data.json", json.loads(spec.to_json()))

    def write_tokenizer(self, config: data.DataConfig) -> None:
        """Writes the tokenizer and its settings: tokenizer.json, or tokenizer.model for a SentencePiece model.

        Files of an earlier start that do not belong to this tokenizer are removed.
        """
        if not self.leads:
            return
        with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=self.path) as place:
            data.save_tokenizer(config, place)
            new = {path.name: path for path in pathlib.Path(place).iterdir()}
            for name, path in new.items():
                if path.is_dir():
                    replace_folder(path, self.path / name)
                else:
                    move_whole(path, self.path / name)
            for name in set(data.TOKENIZER_FILES) - new.keys():
                _remove(self.path / name)
            flush(self.path)

    def write_init_report(self, values: Mapping[str, Any] | None) -> None:
        """Writes the report of `init_from`; None removes the report of an earlier start."""
        if values is not None:
            self._write_json("init_from.json", values)
        elif self.leads:
            (self.path / "init_from.json").unlink(missing_ok=True)
            flush(self.path)

    def write_evaluations(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Adds lines to evals.jsonl. A line replaces an earlier one of the same evaluation, subject and step."""
        new = {(line["step"], line["eval"], line["of"]) for line in lines}
        self._edit_evaluations(lambda line: (line["step"], line["eval"], line["of"]) not in new, lines)

    def write_start(self, line: Mapping[str, Any]) -> None:
        """Adds a line to starts.jsonl. It replaces an earlier line of the same start, which has the same `time`."""
        if self.leads:
            kept = [earlier for earlier in self.starts() if earlier["time"] != line["time"]]
            self._write("starts.jsonl", "".join(json.dumps(one) + "\n" for one in [*kept, line]))

    def write_embedding(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes embedding.npz: the features that the report draws."""
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        self._write("embedding.npz", content.getvalue())

    def write_pictures(self, files: Mapping[str, bytes]) -> None:
        """Replaces the folder pictures/ as a whole; without files it stays as it is."""
        if not (self.leads and files):
            return
        with tempfile.TemporaryDirectory(prefix=".pictures.", dir=self.path) as made:
            folder = pathlib.Path(made) / "pictures"
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            replace_folder(folder, self.path / "pictures")
        self._send()

    def pictures(self) -> dict[str, np.ndarray]:
        """Returns the pictures of the run by name, uint8 [H, W, 3]."""
        return report.pixels(self.path / "pictures")

    def write_report(self) -> pathlib.Path:
        """Draws report.html from the other files and returns its path.

        Raises:
            UserError: not the workdir of a run, or a damaged file in it.
        """
        config = self.path / "config.json"
        if config.exists() and not self._describes_run(config):
            raise UserError(f"{config}: is not the config of a run, so {self.name!r} is not a workdir")
        if self.leads:
            self._write("report.html", report.render(self.path))
        return self.path / "report.html"

    def cut_metrics(self, start: int) -> Cut:
        """Prepares metrics.jsonl for a run that continues after step `start`; returns the seconds that it has run.

        Lines of later steps are removed, in evals.jsonl too.

        Raises:
            UserError: a line of metrics.jsonl or evals.jsonl is damaged, and it is not a last line that a crash cut
                off; the file is unchanged.
        """
        self.evaluations()  # a damaged line is reported before metrics are cut
        lines = self.metrics()
        earlier = [line for line in lines if line["step"] <= start]
        if (self.path / "metrics.jsonl").exists():
            self._write("metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in earlier))
        self._edit_evaluations(lambda line: line["step"] <= start)
        kept, all_lines = _seconds(earlier), _seconds(lines)
        return Cut(kept, max(all_lines - kept, 0.0))

    def append_metrics(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl.

        Raises:
            UserError: the files cannot be sent to the bucket.
        """
        if self._mirror:
            self._mirror.check()
        if self.leads:
            line = {"step": step, **{k: _json_number(v) for k, v in numbers.items()}}
            append_line(self.path / "metrics.jsonl", json.dumps(line))

    def _edit_evaluations(self, keep: Any, more: Sequence[Mapping[str, Any]] = ()) -> None:
        """Rewrites evals.jsonl under a lock, since `ssljax eval` may write to it during training."""
        if not self.leads:
            return
        with locked(self.path / ".evals.lock"):
            if self._mirror:
                with self._as_file_error():
                    self._mirror.take_file("evals.jsonl")
            kept = [line for line in self.evaluations() if keep(line)]
            if kept or more or (self.path / "evals.jsonl").exists():
                self._write("evals.jsonl", "".join(json.dumps(line) + "\n" for line in [*kept, *more]))
                self._send(at_once=True)

    def _write_json(self, name: str, value: Any) -> None:
        self._write(name, json.dumps(value, indent=2))

    def _write(self, name: str, content: str | bytes) -> None:
        if self.leads:
            write_whole(self.path / name, content)
            self._send()

    def _send(self, at_once: bool = False) -> None:
        """Sends changed files to the bucket; a run that trains does it in the background, unless `at_once`.

        Raises:
            PermissionError: the bucket cannot be written to.
            UserError: another error of the bucket.
        """
        if self._mirror is None or (self._mirror.is_sending and not at_once):
            return
        with self._as_file_error():
            self._mirror.send_files()

    @contextlib.contextmanager
    def _as_file_error(self) -> Iterator[None]:
        """Raises a missing permission of the bucket as that of a folder, for commands that read a run.

        While the run trains, an error that may pass is logged: the thread tries again.
        """
        assert self._mirror
        try:
            yield
        except BucketError as error:
            if self._mirror.is_sending and error.passing:
                log.warning("%s; it is tried again", error)
            elif error.denied and not self._mirror.is_sending:
                raise PermissionError(errno.EACCES, str(error)) from error
            else:
                raise


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Returns the seconds that a run had taken at its last line; 0 if they are unknown."""
    seconds = lines[-1].get("seconds") if lines else 0.0
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _json_number(value: Any) -> Any:
    """Returns a JSON value. NaN and infinity, which JSON does not have, become null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
