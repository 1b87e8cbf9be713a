"""Trackers: programs that show the numbers of runs. metrics.jsonl and evals.jsonl have the same numbers.

A tracker is a class with `__init__(run: Tracked)`, `scalars(step, values)` and `close()`, and perhaps
`pictures(step, {name: uint8 [H, W, 3]})`, called after the last step. A class of the user is named
`package.module:Class` in `log.trackers`. Names of values begin with `train/`, `health/`, `eval/` (the trained model) or
`control/NAME/` (the controls of evaluations).
"""

import csv
import dataclasses
import json
import logging
import math
import os
import pathlib
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ssljax.base.errors import UserError, one_line
from ssljax.base.files import read_json, replacing, write_whole
from ssljax.base.plain import dotted
from ssljax.base.registry import Registry
from ssljax.config import RunConfig
from ssljax.runs.workdir import Workdir

log = logging.getLogger(__name__)

REGISTRY = Registry(
    "tracker",
    {
        "aim": "ssljax.runs.trackers:Aim",
        "csv": "ssljax.runs.trackers:Csv",
        "mlflow": "ssljax.runs.trackers:MLflow",
        "tensorboard": "ssljax.runs.trackers:TensorBoard",
        "trackio": "ssljax.runs.trackers:Trackio",
        "wandb": "ssljax.runs.trackers:WandB",
    },
    has=("scalars", "close"),
)

# Trackers whose libraries are extras of the package: `pip install ssljax[NAME]`.
EXTRAS = ("aim", "mlflow", "trackio", "wandb")

# Trackers whose libraries have one open run in a process, so that their runs are not stacked.
ONE_RUN_A_PROCESS = ("trackio", "wandb")


@dataclasses.dataclass(frozen=True)
class Tracked:
    """The run that a tracker shows.

    Attributes:
        folder: the workdir; its name is the name of the run.
        config: the config, {dotted key: number, text, truth value or None}.
        start: number of steps that earlier starts completed; values of later steps are sent again.
    """

    folder: pathlib.Path
    config: Mapping[str, Any]
    start: int

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.folder.resolve().name

    def known(self, tracker: str) -> str | None:
        """Returns the id that a library gave to the run at an earlier start; None: there was none.

        A folder that was removed and made again is another run.
        """
        return self._ids().get(tracker)

    def remember(self, tracker: str, identity: str) -> str:
        """Keeps the id of the run in a library, for later starts, and returns it."""
        write_whole(self.folder / _IDS, json.dumps({**self._ids(), tracker: identity}))
        return identity

    def _ids(self) -> dict[str, Any]:
        path = self.folder / _IDS
        return read_json(path) if path.is_file() else {}


_IDS = ".trackers.json"


class Tracker(Protocol):
    """Shows the numbers of a run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Receives finite numbers, measured after `step` steps."""

    def close(self) -> None:
        """Ends the run, also after an error."""


class Trackers:
    """All trackers of a run. One that fails is named once in the log and gets no more values; the run goes on.

    Args:
        names: entries of `REGISTRY`, or `package.module:Class`.
        run: the run.

    Raises:
        UserError: an unknown name, or a library that is not installed.
    """

    def __init__(self, names: Sequence[str], run: Tracked):
        self._open: dict[str, Tracker] = {}
        for name in names:
            tracker = REGISTRY.get(name, "log.trackers")
            try:
                self._open[name] = tracker(run)
            except ImportError as error:
                self.close()
                extra = f"ssljax[{name}]" if name in EXTRAS else error.name
                raise UserError(
                    f"log.trackers: {name!r} needs the library {error.name!r}; pip install {extra}"
                ) from error
            except Exception as error:  # each library raises types of its own
                self._give_up(name, error)

    def training(self, step: int, values: Mapping[str, Any]) -> None:
        """Sends the values of a log point."""
        self._send(step, {name if name.startswith("health/") else f"train/{name}": v for name, v in values.items()})

    def evaluations(self, step: int, lines: Iterable[Mapping[str, Any]]) -> None:
        """Sends lines of evals.jsonl."""
        values: dict[str, Any] = {}
        for line in lines:
            kind = "eval" if line["of"] == "trained" else f"control/{line['of']}"
            values |= {f"{kind}/{line['eval']}/{name}": v for name, v in line["metrics"].items()}
        self._send(step, values)

    def pictures(self, step: int, workdir: Workdir) -> None:
        """Sends the pictures of a run to the trackers that take pictures."""
        takers = {name: tracker for name, tracker in self._open.items() if hasattr(tracker, "pictures")}
        images = workdir.pictures() if takers else {}
        for name, tracker in takers.items():
            try:
                tracker.pictures(step, images)
            except Exception as error:
                self._give_up(name, error)

    def close(self) -> None:
        """Ends all trackers."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.close()
            except Exception as error:
                self._give_up(name, error)
        self._open.clear()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: float(v) for name, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        for name, tracker in list(self._open.items()):
            try:
                tracker.scalars(step, numbers)
            except Exception as error:
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        log.warning("the tracker %s gets no more values: %s", name, one_line(str(error) or type(error).__name__))
        self._open.pop(name, None)


def open_trackers(config: RunConfig, workdir: Workdir, start: int) -> Trackers:
    """Opens the trackers of a run that continues after step `start`; none in processes that do not lead."""
    names = config.log.trackers if workdir.leads else ()
    values = {k: str(v) if isinstance(v, list | tuple) else v for k, v in dotted(config.to_dict()).items() if v != {}}
    return Trackers(names, Tracked(workdir.path, values, start))


class Stored:
    """The last step of each name that earlier starts have stored in a library that would store a step twice.

    Steps after a checkpoint are run again after a kill, and give the same values.
    """

    def __init__(self, pairs: Iterable[tuple[str, int]] = ()):
        self._last: dict[str, int] = {}
        for name, step in pairs:
            self._last[name] = max(step, self._last.get(name, step))

    def missing(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the values that are not stored yet."""
        return {name: value for name, value in values.items() if step > self._last.get(name, -1)}


class TensorBoard:
    """Writes an events file into the workdir, with the config as hyper-parameters."""

    def __init__(self, run: Tracked):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import hparams

        again = any(run.folder.glob("events*"))
        # Without tensorboardX's thread: if that dies (a full disk), the run would wait for it for ever.
        self._events = EventsWriter(str(run.folder / "events"))
        if again:  # hides events after the restored step, since these steps are run again
            self._write(Event(step=run.start + 1, session_log=SessionLog(status=SessionLog.START)))
        settings = {key: value for key, value in run.config.items() if value is not None}
        for summary in hparams(settings, {"train/loss": 0.0}):  # the metric of the table of runs
            self._write(Event(wall_time=time.time(), summary=summary))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import image

        for name, pixels in images.items():
            summary = image(f"pictures/{name}", pixels, dataformats="HWC")
            self._write(Event(step=step, wall_time=time.time(), summary=summary))

    def close(self) -> None:
        self._events.close()

    def _write(self, event: Any) -> None:
        self._events.write_event(event)
        self._events.flush()


class Csv:
    """Writes metrics.csv into the workdir: a line for each step with values, a column for each name."""

    def __init__(self, run: Tracked):
        self._path = run.folder / "metrics.csv"
        self._names: list[str] = ["step"]
        rows = [row for row in self._read() if int(row["step"]) <= run.start]
        self._stored = Stored((name, int(row["step"])) for row in rows for name, value in row.items() if value)
        self._rewrite(rows)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        values = self._stored.missing(step, values)
        if not values:
            return
        if new := [name for name in values if name not in self._names]:
            rows = self._read()
            self._names += new
            self._rewrite(rows)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._names).writerow({"step": step, **values})

    def close(self) -> None:
        pass

    def _read(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self._names = list(reader.fieldnames or ["step"])
            return list(reader)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with replacing(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._names)
            writer.writeheader()
            writer.writerows(rows)


class WandB:
    """Weights & Biases. Its environment variables hold (WANDB_MODE=offline, WANDB_PROJECT, ...)."""

    def __init__(self, run: Tracked):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ssljax"),
            dir=str(run.folder),
            name=run.name,
            id=run.known("wandb") or run.remember("wandb", uuid.uuid4().hex[:8]),
            resume="allow",
            config=dict(run.config),
            # Without a network, W&B would wait longer than its own limit of 90 s before training begins.
            settings=wandb.Settings(init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", 30))),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        import wandb

        self._run.log({f"pictures/{name}": wandb.Image(pixels) for name, pixels in images.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where (default: the experiment "ssljax")."""

    def __init__(self, run: Tracked):
        import mlflow
        from mlflow.entities import Param

        self._client = mlflow.MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ssljax")
        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self._client.create_experiment(experiment)
        self._id = run.known("mlflow") or ""
        self._stored = Stored()
        if self._id and (earlier := self._client.search_runs([where], f"attributes.run_id = '{self._id}'")):
            self._client.set_terminated(self._id, "RUNNING")
            histories = [self._client.get_metric_history(self._id, name) for name in earlier[0].data.metrics]
            self._stored = Stored((metric.key, metric.step) for history in histories for metric in history)
            return
        self._id = run.remember("mlflow", self._client.create_run(where, run_name=run.name).info.run_id)
        params = [Param(_ALLOWED.sub("_", key), str(value)[:500]) for key, value in run.config.items()]
        for start in range(0, len(params), 100):  # the most that one call takes
            self._client.log_batch(self._id, params=params[start : start + 100])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = self._stored.missing(step, {_ALLOWED.sub("_", name): value for name, value in values.items()})
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in new.items()])

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, pixels in images.items():
            self._client.log_image(self._id, pixels, key=name, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


_ALLOWED = re.compile(r"[^\w/. :-]")  # characters that names in MLflow cannot have; names of evaluations may


class Trackio:
    """Trackio, which keeps its numbers in a local database. The names of runs, which identify them, end at random."""

    def __init__(self, run: Tracked):
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        project = os.environ.get("TRACKIO_PROJECT", "ssljax")
        name = run.known("trackio") or run.remember("trackio", f"{run.name} {uuid.uuid4().hex[:6]}")
        self._run = trackio.init(project=project, name=name, config=dict(run.config), resume="allow")
        logs = SQLiteStorage.get_logs(project, name)
        self._stored = Stored((key, line["step"]) for line in logs for key in line)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if new := self._stored.missing(step, values):
            self._run.log(new, step=step)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        import trackio

        self._run.log({f"pictures/{name}": trackio.Image(pixels) for name, pixels in images.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class Aim:
    """Aim, whose repository is in the folder above the workdir (AIM_REPO names another one)."""

    def __init__(self, run: Tracked):
        import aim

        repository = aim.Repo.from_path(os.environ.get("AIM_REPO", str(run.folder.resolve().parent)), init=True)
        earlier = run.known("aim")
        if earlier and not repository.run_exists(earlier):
            earlier = None
        # Aim would catch the terminal, whose progress bar it does not need. A process that was killed leaves its lock.
        options: dict[str, Any] = {"system_tracking_interval": None, "capture_terminal_logs": False}
        self._run = aim.Run(earlier, repo=repository, experiment=run.name, force_resume=True, **options)
        run.remember("aim", self._run.hash)
        self._run["hparams"] = dict(run.config)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._run.track(value, name=name, step=step)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        import aim
        from PIL import Image

        for name, pixels in images.items():
            self._run.track(aim.Image(Image.fromarray(pixels)), name=f"pictures/{name}", step=step)

    def close(self) -> None:
        self._run.close()
