"""Studies on the processes of one job, such as the hosts of a pod: each run trains on the devices of all of them.

Every process has a trainer. Process 0 leads: it has the worker, which claims runs, announces each to the others, and
records one outcome. The processes agree through the service that connects them, and use no accelerator themselves.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.base.signals import Signals
from ssljax.scaling.driver import Ended
from ssljax.scaling.ledger import Claim, Outcome
from ssljax.scaling.process import TrainerProcess
from ssljax.scaling.trainer import OUTPUT

_POLL = 0.2  # seconds between two looks at the own trainer
_LOOK = 1.0  # seconds between two looks at the notes of others
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # of the job; each trainer has another port
_GRACE = 120.0  # seconds that trainers have to end after that of process 0
_HASTE = 30.0  # seconds that a trainer has to end after that of another process has failed
# Reasons that follow from the end of another process.
_LOST = re.compile("since process|process of this job|killed by SIGABRT|did not come to|cannot be reached")


class Left(UserError):
    """Process 0 has ended with an error, which it has reported; every process of the job ends with its exit code."""

    def __init__(self, code: int):
        super().__init__("process 0 has ended")
        self.exit_code = code


class Team:
    """This process and the others of its job; all make the team at the same time, after `parallel.start`.

    Args:
        job: the place of this process in its job; None: it is known to jax alone.
    """

    def __init__(self, job: parallel.Job | None):
        self.leads, self._job = parallel.leads(), job
        self._board, self._number, self._reported, self._looked = parallel.Board("study"), 0, 0, 0.0
        self._host = parallel.coordinator_host()
        self._listened, self._deadline = 0.0, float("inf")

    # The leading process

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """A context at whose end the other processes leave, with the exit code of an error in it."""
        code = 1
        try:
            yield
            code = 0
        except (UserError, OSError, Ended) as error:
            code = getattr(error, "exit_code", 2)
            raise parallel.agreed(error) from error.__cause__
        finally:
            self._board.write(f"order/{self._number + 1}", {"claims": None, "code": code})
            if code == 1:
                time.sleep(2 * _LOOK)  # the others lose the service with this process

    def listen(self) -> None:
        """Raises a signal here that came to another process; the worker calls it often."""
        if time.monotonic() < self._listened + _LOOK:
            return
        self._listened = time.monotonic()
        if self._board.found("signal"):
            self._board.remove("signal")
            signal.raise_signal(signal.SIGTERM)

    def announce(self, claims: Sequence[Claim], store: pathlib.Path) -> TrainerProcess:
        """Starts a trainer in every process."""
        self._board.remove(f"order/{self._number - 1}")
        self._number += 1
        self._board.remove(f"end/{self._number - 2}")
        order = {"claims": list(claims), "coordinator": f"{self._host}:{_free_port()}"}
        self._board.write(f"order/{self._number}", order)
        return self._trainer(order, store)

    def outcomes(self, trainer: TrainerProcess) -> list[Outcome] | None:
        """Returns the outcomes of the announced runs; None: the trainer of a process has not ended."""
        topic = f"end/{self._number}"
        if self._reported < self._number and trainer.ended():
            self._reported = self._number
            self._board.write(topic, trainer.outcomes())
        if time.monotonic() < self._looked + _LOOK:
            return None
        self._looked = time.monotonic()
        notes = self._board.found(topic)
        if self._reported < self._number:
            self._hurry(trainer, notes)
            return None
        if len(notes) < jax.process_count():
            return None
        self._deadline = float("inf")
        return [joint_outcome([notes[p][i] for p in sorted(notes)]) for i in range(len(trainer.claims))]

    def _hurry(self, trainer: TrainerProcess, notes: dict[int, list[Outcome]]) -> None:
        """Ends the own trainer some time after that of another process has failed: it may wait for it."""
        if self._deadline == float("inf") and any(one.state == "failed" for note in notes.values() for one in note):
            self._deadline = time.monotonic() + _HASTE
        if time.monotonic() > self._deadline:
            trainer.kill()

    # The others

    def follow(self, store: pathlib.Path) -> None:
        """Trains what process 0 announces, until it has no more.

        Args:
            store: folder of the store, which all processes see.

        Raises:
            Stopped: a signal came, here or to process 0.
        """
        with Signals() as signals:
            signals.record()
            while True:
                self._number += 1
                order = self._await_order(signals)
                if order is None or order["claims"] is None:
                    break
                self._board.write(f"end/{self._number}", self._train(order, store, signals))
        if order is None or order["code"] == Ended.exit_code:
            raise parallel.agreed(Ended())
        if order["code"]:
            raise parallel.agreed(Left(order["code"]))

    def _await_order(self, signals: Signals) -> dict[str, Any] | None:
        """Returns the next order; None: a signal came to this process, and process 0 did not answer in time."""
        deadline = float("inf")
        while (found := self._board.read(f"order/{self._number}")) is None:
            if signals.received and deadline == float("inf"):
                self._board.write("signal", True)
                deadline = time.monotonic() + _GRACE
            if time.monotonic() > deadline:
                return None
            time.sleep(_LOOK)
        return found[0]

    def _train(self, order: dict[str, Any], store: pathlib.Path, signals: Signals) -> list[Outcome]:
        trainer, told, deadline = self._trainer(order, store), False, float("inf")
        while not trainer.ended():
            if signals.received and not told:
                self._board.write("signal", True)
                trainer.terminate()
                told = True
            if time.monotonic() > self._looked + _LOOK:
                self._looked = time.monotonic()
                if deadline == float("inf") and self._board.read(f"end/{self._number}"):
                    deadline = self._looked + _GRACE
            if time.monotonic() > deadline:
                trainer.kill()
            time.sleep(_POLL)
        return trainer.outcomes()

    def _trainer(self, order: dict[str, Any], store: pathlib.Path) -> TrainerProcess:
        number = jax.process_index()
        place = {"process_id": number, "num_processes": jax.process_count(), "coordinator": order["coordinator"]}
        environment = {}
        if self._job and self._job.local_devices is not None:
            environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, self._job.local_devices))
        if bind := os.environ.get(_BIND):
            environment[_BIND] = f"{bind.rpartition(':')[0]}:{order['coordinator'].rpartition(':')[2]}"
        output = f"{number}.".join(OUTPUT.rsplit(".", 1)) if number else OUTPUT
        return TrainerProcess(store, order["claims"], environment, place, output)


def join(
    coordinator: str | None = None, process_id: int | None = None, num_processes: int | None = None
) -> Team | None:
    """Returns the team of the job to which this process belongs; None: it is alone.

    Args:
        coordinator, process_id, num_processes: see `ssljax.parallel.start`.

    Raises:
        UserError: the settings are wrong, or not all processes came in time.
    """
    jax.config.update("jax_platforms", "cpu")  # the devices belong to the trainers
    job = parallel.start(coordinator, process_id, num_processes)
    return Team(job) if jax.distributed.is_initialized() and jax.process_count() > 1 else None


def joint_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Returns the outcome of a run from those of the processes of its job, of process 0 first.

    It is that of process 0. If process 0 failed because another process ended, that process has the reason: it failed,
    or a signal stopped it.
    """
    first = outcomes[0]
    if first.state != "failed" or not _LOST.search(first.why):
        return first
    if any(other.state == "planned" for other in outcomes):
        return dataclasses.replace(first, state="planned", why="")
    causes = [other.why for other in outcomes if other.state == "failed" and not _LOST.search(other.why)]
    number = next((i for i, other in enumerate(outcomes) if other.why == causes[0]), 0) if causes else 0
    return dataclasses.replace(first, why=f"process {number}: {causes[0]}") if number else first


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
