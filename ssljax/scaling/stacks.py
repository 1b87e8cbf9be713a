"""Stacked runs: runs of one shape train in one program, each with its own workdir, as `ssljax.run.train` writes it.

The step is the one that a run alone has, mapped over the states of the runs (`ssljax.train.stacked`). Log points,
evaluations, checkpoints and the end of a run are those of `ssljax.runs.recorder` and `ssljax.run`, called for each run
with its part of the stack. A run that is alone can therefore be continued in a stack, and the reverse.
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax

from ssljax import data, parallel
from ssljax.base.errors import UserError
from ssljax.base.signals import Signals
from ssljax.base.threads import single_threaded_blas
from ssljax.config import RunConfig, difference
from ssljax.parallel.memory import free_bytes
from ssljax.run import train
from ssljax.runs.assembly import Assembly, Parts
from ssljax.runs.evaluation import collapse, evaluation_params, health_batch
from ssljax.runs.recorder import Shared
from ssljax.runs.starts import Part
from ssljax.runs.workdir import Resume
from ssljax.scaling.stackable import Group, stackable
from ssljax.scaling.stacked_run import Outcome, StackedRun
from ssljax.train.loop import AHEAD, DeviceWait, Watchdog, fit
from ssljax.train.replicas import Replicas
from ssljax.train.stacked import Stacking, compiled_bytes, state_bytes
from ssljax.train.state import State

log = logging.getLogger(__name__)

Size = int | Literal["auto"]


def train_runs(
    runs: Sequence[tuple[RunConfig, str | pathlib.Path]], stack: Size = "auto", resume: Resume = "auto"
) -> Iterator[tuple[int, Outcome]]:
    """Trains runs to their ends, those of one shape together in stacks, the others one after the other.

    Runs in a job of several processes, and runs with the trackers wandb or trackio, are trained one after the other.

    Args:
        runs: pairs (checked config, workdir); a run that is already in its workdir is continued.
        stack: largest number of runs in a stack; "auto": as many as the memory of the devices holds.
        resume: see `ssljax.run.train`.

    Yields:
        (number of the run in `runs`, the finished run or the error that ended it), as each run ends.

    Raises:
        Stopped: SIGTERM or SIGINT came. The steps of all runs that have not ended are saved, and the same call
            continues them.
    """
    if stack != "auto" and stack < 1:
        raise UserError(f"stack: got {stack}, must be 'auto' or a number of runs, at least 1")
    for group in stackable([config for config, _ in runs]):
        if len(group.members) > 1 and stack != 1:
            yield from _train_group(group, runs, stack, resume)
            continue
        for number in group.members:
            try:
                outcome: Outcome = train(*runs[number], resume)
            except Exception as error:
                outcome = error
            yield number, outcome


def train_stack(
    configs: Sequence[RunConfig],
    workdirs: Sequence[str | pathlib.Path],
    stack: Size = "auto",
    resume: Resume = "auto",
) -> list[Outcome]:
    """Trains runs of one shape in one program.

    Args:
        configs: checked configs, which `stackable` puts into one group.
        workdirs: a folder for each run.
        stack: see `train_runs`.
        resume: see `ssljax.run.train`.

    Returns:
        For each run, the finished run or the error that ended it.

    Raises:
        UserError: the runs have several shapes.
        Stopped: see `train_runs`.
    """
    groups = stackable(configs)
    if len(groups) > 1:
        first, other = (configs[group.members[0]].to_dict() for group in groups[:2])
        keys = "; ".join(difference(first, other)[:4])
        raise UserError(f"stack: the runs have {len(groups)} shapes, must have one; the first two differ in {keys}")
    outcomes = dict(train_runs(list(zip(configs, workdirs, strict=True)), stack, resume))
    return [outcomes[number] for number in range(len(configs))]


def _train_group(
    group: Group, runs: Sequence[tuple[RunConfig, str | pathlib.Path]], size: Size, resume: Resume
) -> Iterator[tuple[int, Outcome]]:
    """Trains the runs of a group in stacks, one after the other; see `train_runs`."""
    with Signals() as signals:
        signals.check()
        began = time.perf_counter()
        made = [StackedRun(number, *runs[number]) for number in group.members]
        opened: dict[str, Parts] = {}
        for run in made:
            run.attempt(functools.partial(run.assemble, opened))
        yield from _ended(made)
        ready = _alive(made)
        try:
            stacking = _stacking(ready, group) if ready else None
        except Exception as error:  # a mistake that all of their configs have
            stacking = None
            for run in ready:
                run.end(error)
        yield from _ended(made)
        while stacking and (ready := _alive(ready)):
            try:
                count = _even(len(ready), _most(stacking, ready[0].assembly, len(ready), size))
            except Exception as error:
                for run in ready:
                    run.end(error)
                count = len(ready)
            with contextlib.closing(_Stack(stacking, ready[:count], signals, resume, began)) as stack:
                while not stack.is_done:
                    stack.advance()
                    yield from _ended(ready)
            yield from _ended(ready)
            began = time.perf_counter()


def _alive(runs: Iterable[StackedRun]) -> list[StackedRun]:
    """Returns the runs that have not ended."""
    return [run for run in runs if run.outcome is None]


def _stacking(runs: Sequence[StackedRun], group: Group) -> Stacking:
    """Returns the functions of the stack, and builds what each run has of its own."""
    stacking = Stacking(
        runs[0].parts.program(group.varied),
        one_seed=len({run.config.seed for run in runs}) == 1,
        one_batch=len({run.data for run in runs}) == 1,
    )
    for place, run in enumerate(runs):
        run.attempt(functools.partial(run.build, stacking, group.varied, runs[:place]))
    return stacking


def _ended(runs: Iterable[StackedRun]) -> Iterator[tuple[int, Outcome]]:
    """Yields the runs that have ended since the last call."""
    for run in runs:
        if run.outcome is not None and not run.told:
            run.told = True
            yield run.number, run.outcome


def _even(runs: int, most: int) -> int:
    """Returns the size of the next stack, so that all stacks have nearly equal sizes of at most `most`."""
    return -(-runs // -(-runs // most))


def _most(stacking: Stacking, assembly: Assembly, runs: int, size: Size) -> int:
    """Returns the largest number of runs in a stack, at most `runs`."""
    if size != "auto":
        return min(size, runs)
    device = next(d for d in stacking.program.mesh.devices.flat if d.process_index == jax.process_index())
    free, one = free_bytes(device), state_bytes(stacking)

    def needed(count: int) -> float:
        joining = (2 * count + 1) * one  # the states of all runs, before and in the stack
        try:
            return max(joining, one + compiled_bytes(_compiled(stacking, assembly, count)))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return max(joining, 1.5 * free)  # the compiler says that it does not fit

    found = fitting(needed, runs, free, 2 * one)
    log.info("stack     %d of %d runs fit %.2f GB (%.3f GB of state each)", found, runs, free / 1e9, one / 1e9)
    return found


def fitting(needed: Callable[[int], float], runs: int, available: float, least: float) -> int:
    """Returns a number of runs, at most `runs` and at least 1, whose step fits the memory.

    Args:
        needed: number of runs -> bytes that their step needs, which compiles it.
        runs: number of runs that are left.
        available: bytes that there are.
        least: bytes that each run needs at least.
    """
    count = max(1, min(runs, int(available / max(least, 1.0))))
    while count > 1:
        need = needed(count)
        if need <= available:
            break
        count = max(1, min(count - 1, int(count * available / need)))
    return count


def _compiled(stacking: Stacking, assembly: Assembly, runs: int) -> Any:
    """Returns the compiled step of a number of runs, from the cache of the program if it is there."""
    cache = stacking.program.compiled
    name = f"stack of {runs}, {stacking.one_seed}, {stacking.one_batch}"
    if name not in cache:
        with parallel.mesh_context(stacking.program.mesh):
            batch = assembly.batch_target()
            step: Any = stacking.jitted_step()
            arguments = stacking.target(runs), batch if stacking.one_batch else (batch,) * runs
            cache[name] = step.lower(*arguments).compile()
    return cache[name]


class _Stack:
    """The runs of a stack, and their states while they train.

    Runs that earlier starts have left at different steps join when the others have reached their step. A run that ends
    early stays in the program, without records, until at least half of the runs in it have ended: to leave it out takes
    another compilation.

    Args:
        stacking: the functions of the stack.
        runs: the runs.
        signals: the entered context that handles signals.
        resume: see `ssljax.run.train`.
        began: `time.perf_counter()` at the beginning.
    """

    def __init__(self, stacking: Stacking, runs: Sequence[StackedRun], signals: Signals, resume: Resume, began: float):
        self.stacking, self.runs, self.signals, self.resume = stacking, list(runs), signals, resume
        self.began = began
        self.mesh = stacking.program.mesh
        self.steps = runs[0].assembly.steps
        self.done = 0
        self.inside: list[StackedRun] = []  # in the order of the stack; some may have ended
        self.state: State | None = None
        self.batches = _Batches()
        self.watchdog = Watchdog(runs[0].config.log.stall_seconds)
        self.shared = Shared(DeviceWait(), False)
        self.is_open = False

    @property
    def alive(self) -> list[StackedRun]:
        """The runs that have not ended."""
        return _alive(self.runs)

    @property
    def training(self) -> list[tuple[int, StackedRun]]:
        """The runs in the stack that have not ended, with their places."""
        return [(place, run) for place, run in enumerate(self.inside) if run.outcome is None]

    @property
    def is_done(self) -> bool:
        """Returns True if all runs have ended."""
        return not self.alive

    def close(self) -> None:
        """Closes what the runs have open; their saved steps remain."""
        with contextlib.ExitStack() as stack:
            for run in self.alive:
                stack.callback(run.close)
            stack.callback(self.batches.close)

    def advance(self) -> None:
        """Trains until a run ends. An error that is not one of a single run ends all.

        Raises:
            Stopped: a signal came, and all runs are saved.
        """
        try:
            with parallel.mesh_context(self.mesh):
                if not self.is_open:
                    self._open()
                else:
                    self._join()
                    self.state = self._fit()
                    self._settle()
        except Exception as error:
            for run in self.alive:
                run.end(error)

    def _open(self) -> None:
        """Opens the folders of the runs; ends those that have no steps left."""
        self.is_open = True
        for place, run in enumerate(self.runs):
            run.attempt(functools.partial(run.open, self.resume, self.began), quiet=place > 0)
        for place, run in enumerate(self.alive):
            shared = dataclasses.replace(self.shared, shows_progress=place == 0)
            run.attempt(
                functools.partial(run.record, self.batches, self.signals, self.watchdog, shared), quiet=place > 0
            )
        if not self.alive:
            return
        self.signals.saved(min(run.start for run in self.alive) or None)
        for run in self.alive:
            if run.start == self.steps or run.recorder.is_exhausted():
                run.attempt(run.finish_at_start)
        if self.alive:
            self.done = min(run.start for run in self.alive)
            names = ", ".join(sorted({key for run in self.alive for key in run.hyper})) or "seed"
            log.info("stack     %d runs in one program, which differ in %s", len(self.alive), names)

    def _join(self) -> None:
        """Puts the runs that continue from this step into the stack, and leaves out those that have ended, if many."""
        stay = [run for _, run in self.training]
        if not stay:
            self.done = min(run.start for run in self.alive)
        joining = [run for run in self.alive if run.state is not None and run.start == self.done]
        if not joining and 2 * len(stay) > len(self.inside):
            return
        self.batches.close()
        new, stack = [*stay, *joining], self.stacking.empty(len(stay) + len(joining))
        for place, run in enumerate(new):
            if run.state is None:
                assert self.state is not None
                state = self.stacking.take(self.state, self.inside.index(run))
            else:
                state, run.state = run.state, None
            stack = self.stacking.put(stack, place, state, run.hyper)
        self.inside, self.state = new, stack
        self._health_batch = self._of_each(lambda run: health_batch(run.assembly))
        depth = new[0].config.data.prefetch
        read, put = (functools.partial(call, tuple(new)) for call in (self._read, self._put))
        self.batches.open(data.Prefetcher(read, put, self.done, self.steps, depth))

    def _of_each(self, make: Callable[[StackedRun], Any]) -> Any:
        """Returns one result if all runs see the same batches, otherwise a tuple of one for each run in the stack."""
        if self.stacking.one_batch:
            return make(self.inside[0])
        made: dict[str, Any] = {}
        for run in self.inside:
            if run.data not in made:
                made[run.data] = make(run)
        return tuple(made[run.data] for run in self.inside)

    def _read(self, runs: Sequence[StackedRun], step: int) -> dict[str, Any]:
        """Returns the host batches of a step: {name of the data: rows of this process}."""
        found = {run.data: run.assembly.dataset for run in runs}
        rows = self.stacking.program.own_rows
        return {name: dataset.batch(step, part=rows) for name, dataset in found.items()}

    def _put(self, runs: Sequence[StackedRun], batches: Mapping[str, Any]) -> Any:
        """Returns the batch of the stack on the devices."""
        placed = {name: self.stacking.program.put_rows(batch) for name, batch in batches.items()}
        one, names = self.stacking.one_batch, [run.data for run in runs]
        return placed[names[0]] if one else tuple(placed[name] for name in names)

    def _fit(self) -> State:
        assert self.state is not None
        recorder = self.inside[0].recorder
        compare = None
        if recorder.compares_replicas():
            compare = Replicas(self.stacking.target(len(self.inside)), self.mesh).check
        return fit(
            _compiled(self.stacking, self.inside[0].assembly, len(self.inside)),
            self.state,
            self.batches,
            stop=self.steps,
            callbacks=recorder.scheduled(self._tick, compare, self._log, self._evaluate, self._save),
            on_stop=self._on_stop,
            exhausted=self._has_news,
            signals=self.signals,
            votes=parallel.Votes(self.mesh, AHEAD),
            watchdog=self.watchdog,
            wait=self.shared.wait,
        )

    def _has_news(self) -> bool:
        """Returns True if a run has ended or ends at this step, or joins."""
        training = self.training
        ended = len(training) < len(self.inside) and any(not run.told for run in self.inside if run.outcome is not None)
        joins = any(run.state is not None and run.start == self.done for run in self.alive)
        return ended or joins or any(run.recorder.is_exhausted() for _, run in training)

    def _settle(self) -> None:
        """Ends the runs that are at their last step, or whose metric no longer improves."""
        leaving = [run for _, run in self.training if self.done == self.steps or run.recorder.is_exhausted()]
        if not leaving or self.state is None:
            return
        self._save(self.done, self.state)  # of all runs, since a signal ends an evaluation at once from here on
        for _, run in self.training:
            run.attempt(run.checkpoints.wait)
        for place, run in self.training:
            if run in leaving:
                run.attempt(functools.partial(self._finish, place, run))

    def _finish(self, place: int, run: StackedRun) -> None:
        assert self.state is not None
        run.finish(self.stacking.take(self.state, place))

    # The callbacks between the steps

    def _tick(self, step: int, stack: State) -> None:
        self.done = step
        for _, run in self.training:
            run.recorder.tick(step, stack)

    def _log(self, step: int, stack: State) -> State:
        stack, numbers = self.stacking.pop(stack)
        with single_threaded_blas():
            measure = self.stacking.measure(collapse)
            health = measure(evaluation_params(stack), stack.extra, stack.hyper, self._health_batch)
            numbers = {**numbers, **health}
            self.shared.wait(numbers)
        values = parallel.fetch(numbers)
        for place, run in self.training:
            own = {name: float(value[place]) for name, value in values.items()}
            run.attempt(functools.partial(run.recorder.write_numbers, step, own))
        return stack

    def _evaluate(self, step: int, stack: State) -> None:
        due = [run for _, run in self.training if run.recorder.due(step)]
        if due:
            self.shared.wait(stack.step)
            self._each("evaluations", lambda run, state: run.recorder.evaluate(step, state), stack)

    def _save(self, step: int, stack: State) -> None:
        self.shared.wait(stack.step)
        self._each("checkpoints", lambda run, state: run.recorder.save(step, state), stack)

    def _each(self, part: Part, call: Callable[[StackedRun, State], Any], stack: State) -> None:
        """Calls a function for each run, whose time the other runs count as that of the part, not of training."""
        spent: dict[int, float] = {}
        for place, run in self.training:
            began = time.perf_counter()
            run.attempt(lambda: call(run, self.stacking.take(stack, place)))  # noqa: B023
            spent[run.number] = time.perf_counter() - began
        for _, run in self.training:
            run.recorder.set_aside(part, sum(spent.values()) - spent[run.number])

    def _on_stop(self, step: int, stack: State) -> None:
        """Saves all runs after a signal; if a run ends or joins, there is nothing to do yet."""
        if self.signals.received:
            self._save(step, stack)


class _Batches:
    """The prefetched batches of a stack, which are made anew when its runs change."""

    def __init__(self) -> None:
        self._current: data.Prefetcher | None = None
        self._waited = 0.0

    @property
    def wait_seconds(self) -> float:
        """Total time that the loop has waited for batches, in seconds."""
        return self._waited + (self._current.wait_seconds if self._current else 0.0)

    def open(self, batches: data.Prefetcher) -> None:
        """Takes new batches in place of the present ones."""
        self.close()
        self._current = batches

    def close(self) -> None:
        """Drops the batches."""
        if self._current is not None:
            self._current.close()
            self._waited += self._current.wait_seconds
            self._current = None

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        assert self._current is not None
        return iter(self._current)
