"""One run of a stack: its folder, data, evaluations and records, which are those of a run that is alone."""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ssljax import data, evals
from ssljax.base.hashing import digest
from ssljax.base.signals import Signals
from ssljax.config import RunConfig
from ssljax.run import checked_evaluator, finish, open_folder
from ssljax.runs.assembly import Assembly, Parts, parts_of
from ssljax.runs.evaluation import control_results
from ssljax.runs.finished import Finished
from ssljax.runs.inspection import announce
from ssljax.runs.recorder import Recorder, Shared
from ssljax.runs.trackers import open_trackers
from ssljax.runs.workdir import Resume, Workdir
from ssljax.scaling.stackable import numbers
from ssljax.train.checkpoint import Checkpoints
from ssljax.train.loop import Watchdog
from ssljax.train.stacked import Stacking
from ssljax.train.state import State

log = logging.getLogger(__name__)

Outcome = Finished | Exception


class StackedRun:
    """One run of a stack.

    Attributes:
        number: its number in the list of the caller.
        outcome: how it ended; None: it has not.
        told: True: the caller knows the outcome.
        data: name of its batches; runs with equal names see equal batches.
        hyper: its values of the settings that vary.
        state: its state while it is not in the stack.
        start: number of steps that earlier starts completed.
    """

    parts: Parts
    assembly: Assembly
    evaluator: evals.Evaluator
    checkpoints: Checkpoints
    controls: Callable[[], Any]
    recorder: Recorder

    def __init__(self, number: int, config: RunConfig, workdir: str | pathlib.Path):
        self.number, self.given, self.config, self._workdir = number, config, config, workdir
        self.outcome: Outcome | None = None
        self.told, self.data, self.start = False, "", 0
        self.hyper: Mapping[str, float] = {}
        self.state: State | None = None
        self.folder: Workdir | None = None
        self._stack = contextlib.ExitStack()

    def attempt(self, call: Callable[[], Any], quiet: bool = False) -> None:
        """Calls a function unless the run has ended. An error ends the run, and no other run.

        Args:
            call: the function; what it logs is for this run.
            quiet: True: lines of the log go into log.txt only.
        """
        if self.outcome is not None:
            return
        try:
            with self.folder.speaking(quiet) if self.folder else contextlib.nullcontext():
                call()
        except Exception as error:
            self.end(error)

    def end(self, outcome: Outcome) -> None:
        """Notes the outcome and closes what the run has open."""
        self.state = None
        try:
            self.close()
        except Exception as error:
            outcome = outcome if isinstance(outcome, Exception) else error
        self.outcome = outcome
        if isinstance(outcome, Exception):
            log.warning("%s ended: %s", self._workdir, outcome)

    def close(self) -> None:
        """Closes what the run has open."""
        self._stack.close()

    def assemble(self, opened: dict[str, Parts]) -> None:
        """Opens the data, unless an equal run of `opened` has, and makes the parts of the program."""
        self.folder = Workdir(self._workdir)
        given = self.folder.continued(self.given)
        name = _name_of_data(given)
        known = opened.get(name)
        if known is None:
            self.parts = opened[name] = parts_of(given)
        else:
            shared = dataclasses.replace(given, data=dataclasses.replace(known.config.data, seed=given.data.seed))
            self.parts = dataclasses.replace(parts_of(shared, spec=known.spec), open_data=known.open_data)
        self.data = digest([name, json.loads(self.parts.spec.to_json())])
        self.config = dataclasses.replace(self.parts.config, data=self.given.data)

    def build(self, stacking: Stacking, varied: Sequence[str], earlier: Sequence["StackedRun"]) -> None:
        """Makes the run's own program, of which it uses all but the step, and its evaluations.

        Runs with equal objectives, seeds and data share evaluations, which are then compiled once, and controls.
        """
        values = numbers(self.config)
        self.hyper = {key: values[key] for key in varied}
        self.assembly = self.parts.assembly(stacking.member(self.parts.objective, self.hyper))
        for other in earlier:
            same = other.config.seed == self.config.seed and other.data == self.data
            if other.outcome is None and same and other.parts.objective == self.parts.objective:
                self.evaluator, self.controls = other.evaluator, other.controls
                return
        self.evaluator = checked_evaluator(self.assembly)
        self.controls = functools.cache(functools.partial(control_results, self.assembly, self.evaluator))

    def open(self, resume: Resume, began: float) -> None:
        """Takes the folder, and restores or makes the state; `began` is the `time.perf_counter()` of the beginning."""
        assert self.folder is not None
        found = open_folder(self._stack, self.assembly, self.folder, self.config, resume)
        self.checkpoints, self.state, self.start = found
        self.folder.write_description(self.config, self.assembly.spec, self.assembly.config.data)
        self._record = announce(self.assembly, self.folder, self.start, began)
        self._trackers = self._stack.enter_context(open_trackers(self.config, self.folder, self.start))

    def record(self, batches: Any, signals: Signals, watchdog: Watchdog, shared: Shared) -> None:
        """Opens the recorder, and runs the evaluations that a signal has left out."""
        assert self.folder is not None and self.state is not None
        parts = (self.checkpoints, self.evaluator, signals, watchdog, self._trackers, self._record)
        self.recorder = Recorder(self.assembly, self.folder, self.start, batches, *parts, shared)
        self._stack.callback(self.recorder.close)
        self.recorder.evaluate_left_out(self.start, self.state)

    def finish_at_start(self) -> None:
        """Finishes a run that has no steps left."""
        assert self.state is not None
        self.finish(self.state)

    def finish(self, state: State) -> None:
        """Evaluates the run, writes its report, and ends it."""
        self.end(finish(self.recorder, state, self.controls))


def _name_of_data(config: RunConfig) -> str:
    """A text that is equal for runs with the same data in the same order."""
    values, tokenizer = config.to_dict()["data"], config.data.tokenizer
    values["seed"] = config.seed if config.data.seed is None else config.data.seed
    if tokenizer.name == "file":  # an earlier start has written it to the folder of its run
        folder = pathlib.Path(tokenizer.path or "").parent
        files = [folder / name for name in data.TOKENIZER_FILES]
        values["tokenizer"] = {file.name: file.read_bytes().hex() for file in files if file.is_file()}
    return digest(values)
