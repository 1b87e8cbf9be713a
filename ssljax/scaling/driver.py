"""The driver of a study: a worker claims runs, trains each in a process of its own, and records what became of it."""

import dataclasses
import logging
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax

from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.base.locks import EXPIRY
from ssljax.base.signals import Signals, Stopped
from ssljax.parallel import MeshConfig
from ssljax.run import checked_evaluator
from ssljax.runs.assembly import assemble
from ssljax.scaling.cost import Cost, Costs
from ssljax.scaling.ledger import Claim, Ledger, Outcome
from ssljax.scaling.process import TrainerProcess
from ssljax.scaling.study import Study

if TYPE_CHECKING:
    from ssljax.scaling.team import Team

log = logging.getLogger(__name__)

_POLL = 0.2  # seconds between two looks at the trainers
_IDLE = 2.0  # seconds between two looks for runs that others may have left
_BEAT = EXPIRY / 4  # seconds between two renewals of the claims


def plan(study: Study, store: str | pathlib.Path, costs: Costs | None = None) -> tuple[Ledger, dict[str, Cost]]:
    """Adds a study to a store, which is made if it is missing. Returns the ledger, and the costs of the runs by hash.

    Raises:
        UserError: a config or an evaluation does not fit its data; the store has another study of this name, or too
            little space.
    """
    costs = costs or Costs()
    found = study_costs(study, costs)
    check_evaluations(study)
    rungs: dict[str, Sequence[int]] = {}
    if study.halving:
        for run in study.runs:
            lengths = dataclasses.replace(costs.lengths(run.config), total_steps=found[run.hash].steps)
            rungs[run.hash] = study.halving.rungs(lengths)
        check_halving(study)
    ledger = Ledger(store, make=True)
    check_space(ledger, study, found)
    added = ledger.add(study, found, rungs)
    log.info("%s: study %s has %d runs, %d of them new here", ledger.path, study.name, len(study.runs), added)
    return ledger, found


def study_costs(study: Study, costs: Costs) -> dict[str, Cost]:
    """Returns the costs of the runs of a study by hash, of a trunk up to its last step.

    Raises:
        UserError: a config does not fit its data.
    """
    found = {run.hash: costs(run.config) for run in study.runs}
    return {
        run.hash: dataclasses.replace(found[run.hash], steps=run.stop) if run.stop else found[run.hash]
        for run in study.runs
    }


def check_evaluations(study: Study) -> None:
    """Opens the evaluations of one run of each kind, so that their mistakes are reported before any run begins.

    Raises:
        UserError: the data of an evaluation cannot be opened, or do not fit the model.
    """
    checked = set()
    for run in study.runs:
        values = run.config.to_dict()
        kind = digest([values["evals"], values["data"], values["model"]["name"], values["objective"]["name"]])
        if run.config.evals and kind not in checked:
            checked.add(kind)
            alone = dataclasses.replace(run.config, mesh=MeshConfig())  # the mesh has the devices of the trainers
            checked_evaluator(assemble(alone, jax.devices()[:1]))


def check_halving(study: Study) -> None:
    """Raises UserError if the metric of halving is not measured at the rungs."""
    assert study.halving
    name, slash, _ = study.halving.metric.partition("/")
    for run in study.runs if slash else ():
        every = (run.config.to_dict()["evals"].get(name) or {}).get("every_steps")
        if not every:
            raise UserError(
                f"study.halving.metric: got {study.halving.metric!r}, must be 'loss' or a metric of an evaluation with "
                f"every_steps"
            )


def check_space(ledger: Ledger, study: Study, costs: dict[str, Cost]) -> None:
    """Raises UserError if the disk has too little space for the checkpoints of the runs that are not done."""
    done = set()
    if study.name in ledger.studies():
        done = {row.hash for row in ledger.rows(study.name) if row.step > 0}
    kept = {run.hash: run.config.checkpoint.keep + (run.config.checkpoint.best is not None) for run in study.runs}
    needed = sum(costs[key].state_bytes * number for key, number in kept.items() if key not in done)
    free = shutil.disk_usage(ledger.store).free
    if needed > free:
        count = len(kept.keys() - done)
        raise UserError(
            f"--workdir: the checkpoints of {count} runs need about {needed / 1e9:,.1f} GB, "
            f"{str(ledger.store)!r} has {free / 1e9:,.1f} GB free; free some, or --config.checkpoint.keep=1"
        )


class Worker:
    """A worker of a study: up to `jobs` trainers at a time.

    Args:
        ledger: the ledger of the store.
        study: name of the study.
        jobs: largest number of trainers.
        devices: None, or for each trainer the variables that tell it its devices.
        stack: largest number of runs of one shape that a trainer gets, to train them in one program.
        team: the processes of a job, all of which train each run; this one leads them. None: this process alone.
    """

    def __init__(
        self,
        ledger: Ledger,
        study: str,
        jobs: int = 1,
        devices: Sequence[Mapping[str, str]] | None = None,
        stack: int = 1,
        team: "Team | None" = None,
    ):
        assert team is None or (jobs, stack, devices) == (1, 1, None), "a team trains one run at a time"
        self.ledger, self.study, self.jobs, self.devices, self.stack = ledger, study, jobs, devices, stack
        self.team = team
        self.name = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._slots: dict[int, TrainerProcess] = {}
        self._beaten = time.monotonic()
        self._look_at = 0.0  # when it looks for runs again

    def work(self, poll: Callable[[], None] | None = None) -> None:
        """Trains runs until none is left that this worker could do; runs of other workers are waited for.

        Args:
            poll: a function that is called several times a second; None: none.

        Raises:
            Stopped: SIGTERM or SIGINT came; the trainers have saved and ended. The same call continues.
        """
        with Signals() as signals:
            signals.record()
            try:
                while not signals.received:
                    if self.team:
                        self.team.listen()
                    self._collect()
                    if signals.received or not self._fill():
                        break
                    if poll:
                        poll()
                    time.sleep(_POLL)
            finally:
                self._stop()
            if signals.received:
                raise Ended

    def _fill(self) -> bool:
        """Starts trainers in empty slots. Returns False if there is nothing left to do or to wait for."""
        if time.monotonic() - self._beaten > _BEAT:
            self.ledger.beat(self.name)
            self._beaten = time.monotonic()
        if len(self._slots) == self.jobs or time.monotonic() < self._look_at:
            return True
        self._look_at = time.monotonic() + _IDLE
        self.ledger.halve(self.study)
        for slot in range(self.jobs):
            if slot not in self._slots:
                claims = self.ledger.claim(self.study, self.name, self.stack, alike)
                if not claims:
                    break
                self._start(slot, claims)
        return bool(self._slots) or self.ledger.is_open(self.study)

    def _start(self, slot: int, claims: list[Claim]) -> None:
        """Starts a trainer for runs of one shape."""
        self._check_space(claims)
        if self.team:
            self._slots[slot] = self.team.announce(claims, self.ledger.store)
        else:
            environment = self.devices[slot] if self.devices else {}
            self._slots[slot] = TrainerProcess(self.ledger.store, claims, environment)
        log.info("%s: started", ", ".join(claim.name for claim in claims))

    def _check_space(self, claims: Sequence[Claim]) -> None:
        """Raises UserError if the disk is full: all further runs would fail."""
        free = shutil.disk_usage(self.ledger.store).free
        sizes = {row.hash: 12 * (row.parameters or 0) for row in self.ledger.rows(self.study)}
        needed = sum(sizes[claim.hash] for claim in claims)
        if free < needed:
            self._give_back(claims)
            raise UserError(
                f"--workdir: {str(self.ledger.store)!r} has {free / 1e6:,.0f} MB free, a checkpoint of "
                f"{claims[0].name!r} needs {needed / 1e6:,.0f} MB; free some and repeat the command"
            )

    def _give_back(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            step, loss = self.ledger.progress(claim.hash)
            self.ledger.record(claim, self.name, Outcome("planned", step=step, loss=loss))

    def _collect(self) -> None:
        """Records what became of trainers that have ended."""
        for number, trainer in list(self._slots.items()):
            outcomes = self._outcomes(trainer)
            if outcomes is None:
                continue
            del self._slots[number]
            self._look_at = 0.0
            for claim, outcome in zip(trainer.claims, outcomes):
                self.ledger.record(claim, self.name, outcome)
                shown = "continues later" if outcome.state == "planned" else outcome.state
                log.info("%s: %s%s", claim.name, shown, f" ({outcome.why})" if outcome.why else "")

    def _outcomes(self, trainer: TrainerProcess) -> list[Outcome] | None:
        """Returns what became of the runs of a trainer; None: it has not ended."""
        if self.team:
            return self.team.outcomes(trainer)
        return trainer.outcomes() if trainer.ended() else None

    def _stop(self) -> None:
        """Stops all trainers, waits until they have saved, and records it."""
        for trainer in self._slots.values():
            trainer.terminate()
        while self._slots:
            self._collect()
            if time.monotonic() - self._beaten > _BEAT:
                self.ledger.beat(self.name)
                self._beaten = time.monotonic()
            time.sleep(_POLL / 4)


def alike(one: Claim, other: Claim) -> bool:
    """Returns True if two runs may fit into one program: their configs have one shape, and both run to their ends."""
    if any(claim.parent is not None or claim.until is not None for claim in (one, other)):
        return False
    from ssljax.config import build
    from ssljax.scaling.stackable import of_one_shape

    return of_one_shape(build(one.config), build(other.config))


class Ended(Stopped):
    """A signal stopped a study."""

    def __init__(self) -> None:
        BaseException.__init__(self, "the runs are saved; the same command continues")
        self.step, self.of_all = None, True  # the processes of a team end together
