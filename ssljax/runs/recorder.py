"""Callbacks between training steps: they log metrics, run evaluations and save checkpoints."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ssljax import data, evals, parallel
from ssljax.base import hashing
from ssljax.base.errors import DivergedError
from ssljax.base.signals import Abandoned, Signals
from ssljax.base.threads import single_threaded_blas
from ssljax.runs.assembly import Assembly
from ssljax.runs.evaluation import check_rules, evaluation_params, make_health
from ssljax.runs.progress import Progress
from ssljax.runs.starts import Part, StartRecord
from ssljax.runs.trackers import Trackers
from ssljax.runs.workdir import Workdir
from ssljax.train import noise_scale
from ssljax.train.checkpoint import Checkpoints
from ssljax.train.loop import Callback, DeviceWait, Watchdog
from ssljax.train.metrics import Speedometer
from ssljax.train.replicas import Replicas
from ssljax.train.state import State
from ssljax.train.step import pop_meters

log = logging.getLogger(__name__)

_WRITTEN = 10.0  # seconds between the lines of starts.jsonl that log points write, so that a killed start has one


@dataclasses.dataclass(frozen=True)
class Shared:
    """The parts that the recorders of a stack of runs share.

    Attributes:
        wait: waits for the devices.
        shows_progress: True: this run shows the progress of all.
    """

    wait: DeviceWait
    shows_progress: bool


class Recorder:
    """The callbacks of the loop, in this order: compare replicas, log, evaluate, save.

    Opens the log of metrics and the progress bar of a run that continues after step `start`.
    """

    def __init__(
        self,
        assembly: Assembly,
        workdir: Workdir,
        start: int,
        batches: data.Prefetcher,
        checkpoints: Checkpoints,
        evaluator: evals.Evaluator,
        signals: Signals,
        watchdog: Watchdog,
        trackers: Trackers,
        record: StartRecord,
        shared: Shared | None = None,
    ):
        """Opens the log of metrics.

        Args:
            shared: what the runs of a stack have in common; None: the run is alone.
        """
        self.record, self.wait = record, shared.wait if shared else DeviceWait()
        self.assembly, self.workdir, self.batches, self.trackers = assembly, workdir, batches, trackers
        self.checkpoints, self.evaluator, self.signals, self.watchdog = checkpoints, evaluator, signals, watchdog
        program, spec, settings = assembly.program, assembly.spec, assembly.config.log
        self.pop = jax.jit(pop_meters, donate_argnums=0, out_shardings=(program.shardings, None))
        self.health = make_health(assembly) if shared is None else None
        self.results: dict[int, Mapping[str, Mapping[str, float]]] = {}  # {step: results} of the newest evaluated step
        cut = parallel.lead(lambda: workdir.cut_metrics(start))
        record.lose(cut.lost)
        self.speed = Speedometer(
            assembly.config.batch_size,
            spec.max_len,
            program.objective.flops(spec),
            program.mesh,
            seconds_before=cut.kept,
        )
        shown = settings.progress and workdir.leads and (shared is None or shared.shows_progress)
        self.progress = Progress(assembly.steps, start, shown)
        self._exhausted = parallel.lead(lambda: self._judge(start))

    def close(self) -> None:
        """Ends the progress bar."""
        self.progress.close()

    def callbacks(self, own: Sequence[tuple[int, Callback]] = ()) -> list[tuple[int, Callback]]:
        """Returns pairs (steps between calls, callback) for `train.loop.fit`; `own` ones come before the saving."""
        program = self.assembly.program
        compare = Replicas(program.target(), program.mesh).check if self.compares_replicas() else None
        return self.scheduled(self.tick, compare, self.log, self.evaluate, self.save, own)

    def compares_replicas(self) -> bool:
        """Returns True if the copies of the state on different devices are compared."""
        return self.assembly.config.log.check_every_steps > 0 and self.assembly.program.mesh.size > 1

    def scheduled(
        self,
        tick: Callback,
        compare: Callback | None,
        log: Callback,
        evaluate: Callback,
        save: Callback,
        own: Sequence[tuple[int, Callback]] = (),
    ) -> list[tuple[int, Callback]]:
        """Returns callbacks with the steps between their calls, in the order of their calls."""
        config = self.assembly.config
        calls: list[tuple[int, Callback]] = [(1, tick)]
        if compare is not None:
            calls.append((config.log.check_every_steps, compare))
        calls.append((config.log.every_steps, log))
        every = [e.every_steps for e in self.evaluator.evaluations.values() if e.every_steps]
        if every:
            calls.append((math.gcd(*every), evaluate))
        return [*calls, *own, (config.checkpoint.every_steps or self.assembly.steps, save)]

    def tick(self, step: int, state: State) -> None:
        """Redraws the progress bar, and notes when the first step was done."""
        self.record.stepped(self.batches.wait_seconds)
        self.progress.tick(step)

    def write_record(self) -> None:
        """Writes the line of this start in starts.jsonl."""
        self.record.write(self.batches.wait_seconds)

    @contextlib.contextmanager
    def _paused(self, part: Part) -> Iterator[None]:
        """Counts the time inside as that of evaluations or checkpoints, and leaves it out of logged rates."""
        began = time.perf_counter()
        with self.record.timed(part):
            yield
        self.speed.pause(time.perf_counter() - began)

    def set_aside(self, part: Part, seconds: float) -> None:
        """Counts time that another run of the stack has taken as that of evaluations or checkpoints."""
        self.record.add(part, seconds)
        self.speed.pause(seconds)

    def is_exhausted(self) -> bool:
        """Returns True if the metric of `early_stopping` has not improved for its number of evaluations."""
        return self._exhausted

    def _judge(self, step: int) -> bool:
        rule = self.assembly.config.early_stopping
        if rule is None:
            return False
        name, _, metric = rule.metric.partition("/")
        lines = [line for line in self.workdir.evaluations() if (line["eval"], line["of"]) == (name, "trained")]
        values = {line["step"]: line["metrics"].get(metric) for line in lines if line["step"] <= step}
        ended = rule.is_exhausted([values[at] for at in sorted(values)])
        if ended:
            log.info("early_stopping: %s has not improved in %d evaluations", rule.metric, rule.patience)
        return ended

    def final_results(self, step: int) -> Mapping[str, Mapping[str, float]] | None:
        """Returns the results of all evaluations if they were measured at this step; None: they were not."""
        results = self.results.get(step)
        return results if results is not None and set(results) == set(self.evaluator.evaluations) else None

    def log(self, step: int, state: State) -> State:
        """Writes the mean of each metric since the last call, and returns the state with empty meters.

        Raises:
            DivergedError: too many steps in a row were not finite.
        """
        assert self.health is not None, "the runs of a stack are measured together"
        state, numbers = self.pop(state)
        with single_threaded_blas():
            numbers = {**numbers, **self.health(state)}
            self.wait(numbers)
        self.write_numbers(step, {k: float(v) for k, v in parallel.fetch(numbers).items()})
        return state

    def write_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the means of a log point, with rates and the count of skipped steps.

        Raises:
            DivergedError: too many steps in a row were not finite.
        """
        values: dict[str, Any] = dict(numbers)
        guard = {k: int(values.pop(f"guard/{k}")) for k in ("skipped", "streak", "longest", "last")}
        if guard["skipped"]:
            values["skipped_steps"] = guard["skipped"]
        if noise_scale.missing(self.assembly.program.objective, self.assembly.config.microbatches):
            values.pop(noise_scale.NAME, None)
        values["batch_hash"] = hashing.digest(self.assembly.dataset.ids(step - 1).tolist())
        values |= self.speed.read(step, self.batches.wait_seconds, self.wait.seconds)
        self.workdir.append_metrics(step, values)
        self.trackers.training(step, values)
        self.progress.update(step, values)
        self.record.write(self.batches.wait_seconds, every=_WRITTEN)
        self._check_finite(guard["longest"], guard["last"])

    def _check_finite(self, streak: int, last: int) -> None:
        limit = self.assembly.config.log.skipped_in_a_row
        if streak >= limit:
            ids = self.assembly.dataset.ids(last)[:8].tolist()
            error = DivergedError(
                f"loss: {streak} steps in a row were not finite (limit log.skipped_in_a_row = {limit}); the last one, "
                f"step {last}, saw the examples with ids {ids} ...; lower optimizer.learning_rate or inspect these"
            )
            raise parallel.agreed(error)
        if streak:
            log.warning("step %d was not finite and was skipped; %d such steps in a row", last, streak)

    def evaluate(self, step: int, state: State) -> None:
        """Runs the evaluations that are due and writes their results. Their time is left out of logged rates.

        A signal ends them at once, without results: there is time to save, not to evaluate. The next start runs them.
        """
        names = self.due(step)
        if not names:
            return
        self.wait(state.step)  # the time of unfinished steps is not counted as evaluation
        with self._paused("evaluations"):
            try:
                with self.watchdog.paused(), self._abandoning():
                    results = self.evaluator.run(evaluation_params(state), state.extra, names)
            except Abandoned:
                log.info("the evaluations of step %d wait for the next start", step)
                return
            self._write(step, results)
            if step < self.assembly.steps:  # the end of the run draws it again, with controls
                self.write_record()
                self.workdir.write_report()

    def _abandoning(self) -> contextlib.AbstractContextManager[None]:
        """Ends an evaluation at a signal; in a job, the other processes would wait for this one."""
        return self.signals.abandoning() if jax.process_count() == 1 else contextlib.nullcontext()

    def _evaluated(self, step: int) -> set[str]:
        """Returns the evaluations whose results at a step are in the workdir."""
        lines = self.workdir.evaluations()
        return {line["eval"] for line in lines if (line["step"], line["of"]) == (step, "trained")}

    def evaluate_left_out(self, step: int, state: State) -> None:
        """Runs the evaluations of a restored step that a signal left out, and ranks its checkpoint by them."""
        done = parallel.lead(lambda: self._evaluated(step))
        names = self.due(step)
        if step and not done.issuperset(names):
            with self.record.timed("evaluations"):
                results = self.evaluator.run(evaluation_params(state), state.extra, names)
            self._write(step, results)
            self.checkpoints.rank(step, _flat(results))

    def due(self, step: int) -> list[str]:
        """Returns the evaluations of a step; all after the last one, so that its checkpoint can be ranked by them."""
        last = step == self.assembly.steps
        evaluations = self.evaluator.evaluations.items()
        return [name for name, e in evaluations if last or (e.every_steps and step % e.every_steps == 0)]

    def _write(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        lines = self.evaluator.records(step, results)
        self.workdir.write_evaluations(lines)
        self.trackers.evaluations(step, lines)
        self.progress.evaluated(lines)
        measured = {name: found for name, found in results.items() if np.isfinite(list(found.values())).any()}
        # A diverged evaluation reports headline metrics only, so it is not checked.
        check_rules(self.assembly.config, measured)
        self.results = {step: results}
        self._exhausted = parallel.lead(lambda: self._judge(step))

    def save(self, step: int, state: State) -> None:
        """Saves a checkpoint with the metrics that were measured at this step."""
        self.wait(state.step)
        with self._paused("checkpoints"):
            self.checkpoints.save(state, step, _flat(self.results.get(step, {})))
        self.write_record()


def _flat(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{"knn": {"accuracy": x}} -> {"knn/accuracy": x}."""
    return {f"{name}/{metric}": float(v) for name, metrics in results.items() for metric, v in metrics.items()}
