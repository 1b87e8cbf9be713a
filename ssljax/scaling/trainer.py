"""The process that trains claimed runs for a worker: it may crash, or be killed for its memory, without the worker.

The worker writes its order to the standard input, and keeps it open: at its end, which comes with the death of the
worker, the run is saved and stops, so that another worker can continue it. Outcomes go to a pipe of their own, and what
the run prints to `output.txt` in its workdir.
"""

import dataclasses
import json
import logging
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ssljax.base.errors import DivergedError, UserError, one_line
from ssljax.base.signals import Signals, Stopped

OUTPUT = "output.txt"


def main() -> None:
    """Trains what the standard input orders.

    It is one line {"store", "claims": [...], "result": file descriptor, "job": of `train_claims`}.
    """
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_worker, name="worker", daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s")
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with Signals():  # before the imports, which take seconds
        from ssljax.scaling.ledger import Claim

        claims = [Claim(**values) for values in order["claims"]]
        outcomes = train_claims(pathlib.Path(order["store"]), claims, order.get("job"))
    with os.fdopen(order["result"], "w") as result:
        json.dump([dataclasses.asdict(outcome) for outcome in outcomes], result)
    if order.get("job") and outcomes[0].state in ("failed", "planned"):  # others may be gone, for which JAX would wait
        from ssljax import parallel

        parallel.leave(0)


def _end_with_worker() -> None:
    """Stops the run as SIGTERM does when the worker has ended, which closes its end of the pipe."""
    while os.read(sys.stdin.fileno(), 1 << 10):  # a thread that holds the lock of `sys.stdin` would abort the exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def train_claims(store: pathlib.Path, claims: Sequence[Any], job: Mapping[str, Any] | None = None) -> list[Any]:
    """Trains runs that a worker has claimed. Returns their outcomes, in order.

    Several runs are trained in stacks (`ssljax.scaling.stacks`) where their shapes allow.

    Args:
        store: folder of the store.
        claims: a list of `ssljax.scaling.ledger.Claim`; of several, none begins or ends within another run.
        job: arguments of `ssljax.parallel.start` that make this process one of several, which train one run; None: it
            is alone.
    """
    return [_train(store, claims[0], job)] if len(claims) == 1 else _train_together(store, claims)


def _train_together(store: pathlib.Path, claims: Sequence[Any]) -> list[Any]:
    """Trains several runs to their ends, and returns their outcomes; it raises no error."""
    began, found = time.monotonic(), dict[int, Any]()

    def note(number: int, state: str, why: str = "", metrics: Mapping[str, float] | None = None) -> None:
        seconds = time.monotonic() - began
        found[number] = _outcome(store / "runs" / claims[number].hash, state, why, seconds, metrics or {})

    try:
        from ssljax.config import build
        from ssljax.scaling.stacks import train_runs

        configs = {}
        for number, claim in enumerate(claims):
            try:
                configs[number] = build(claim.config)
            except UserError as error:
                note(number, *_state_of(error))
        runs = [(config, store / "runs" / claims[number].hash) for number, config in configs.items()]
        for place, ended in train_runs(runs):
            number = list(configs)[place]
            if isinstance(ended, Exception):
                note(number, *_state_of(ended))
            else:
                note(number, "done", metrics=headlines(ended.evaluations))
    except BaseException as error:
        for number in set(range(len(claims))) - found.keys():
            note(number, *_state_of(error))
    return [found[number] for number in range(len(claims))]


def _train(store: pathlib.Path, claim: Any, job: Mapping[str, Any] | None) -> Any:
    """Trains a run to its end, or to the step at which it pauses, and returns its outcome; it raises no error."""
    began, workdir, metrics = time.monotonic(), store / "runs" / claim.hash, dict[str, float]()
    try:
        metrics = _trained(store, claim) if job is None else _trained_together(store, claim, job)
        state, why = "done", ""
    except _Reached:
        state, why = claim.then, ""
    except BaseException as error:
        state, why = _state_of(error)
    return _outcome(workdir, state, why, time.monotonic() - began, metrics)


def _state_of(error: BaseException) -> tuple[str, str]:
    """Returns the state of a run that an error has ended, and the reason in one line."""
    if isinstance(error, Stopped | KeyboardInterrupt | SystemExit):
        return "planned", ""
    if isinstance(error, DivergedError):
        return "diverged", str(error)
    if isinstance(error, UserError):
        # A trainer whose worker has died may still be saving; the run is free in a moment.
        busy = isinstance(error.__cause__, BlockingIOError)
        return "planned" if busy else "failed", str(error)
    traceback.print_exception(error)
    return "failed", one_line(f"{type(error).__name__}: {error}".partition("\n")[0])


def _outcome(workdir: pathlib.Path, state: str, why: str, seconds: float, metrics: Mapping[str, float]) -> Any:
    """Returns the outcome of a run, with what its files say."""
    from ssljax.scaling.ledger import Outcome

    step, loss, finite = last_line(workdir)
    if state == "done" and not finite:
        state, why = "diverged", f"loss: not finite at step {step}"
    return Outcome(state, why, step, loss, round(seconds, 3), metrics, version_of(workdir))


class _Reached(BaseException):
    """A run has reached the step at which its claim ends, in all processes."""

    of_all = True


def _trained_together(store: pathlib.Path, claim: Any, job: Mapping[str, Any]) -> dict[str, float]:
    """Does the same as `_trained`, as one process of a job."""
    from ssljax import parallel

    parallel.start(**job)
    if job["process_id"]:  # what all do is said by the leading process
        logging.getLogger().setLevel(logging.WARNING)
    with parallel.joint_end():
        return _trained(store, claim)


def _trained(store: pathlib.Path, claim: Any) -> dict[str, float]:
    """Trains a run to its last step and returns the headline metrics of its final evaluations.

    Raises:
        _Reached: it stopped at the step of the claim, and is saved.
        Stopped: a signal stopped it before.
    """
    from ssljax import parallel, run
    from ssljax.config import build
    from ssljax.scaling.branching import begin_from, saved_steps

    config, workdir = build(claim.config), store / "runs" / claim.hash
    if claim.parent is not None:
        begin_from(store / "runs" / claim.parent, config, workdir)
    if claim.until is not None and parallel.lead(lambda: saved_steps(workdir))[-1:] >= [claim.until]:
        raise _Reached
    try:
        finished = run.train(config, workdir, until=claim.until)
    except Stopped as stopped:
        if claim.until is not None and stopped.step == claim.until:
            raise _Reached from None
        raise
    return headlines(finished.evaluations)


def headlines(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns {"evaluation/metric": value} of the trained model, from lines of evals.jsonl; later steps win."""
    out: dict[str, float] = {}
    for line in sorted(lines, key=lambda line: line["step"]):
        found = line["metrics"].items() if line["of"] == "trained" else ()
        out |= {f"{line['eval']}/{k}": v for k, v in found if k in line["headline"] and v is not None}
    return out


def last_line(workdir: pathlib.Path) -> tuple[int, float | None, bool]:
    """Returns step and loss of the last line of metrics, and False if this loss is not finite."""
    from ssljax.report.read import METRICS, read_lines

    try:
        lines = read_lines(workdir / "metrics.jsonl", METRICS)
    except UserError:
        lines = []
    if not lines:
        return 0, None, True
    loss = lines[-1].get("loss")
    return lines[-1]["step"], loss, loss is not None


def version_of(workdir: pathlib.Path) -> str | None:
    """Returns version and commit of the code that last trained in a workdir; None if it did not begin."""
    from ssljax.report.read import STARTS, read_lines

    try:
        starts = read_lines(workdir / "starts.jsonl", STARTS)
    except UserError:
        starts = []
    if not starts:
        return None
    version, commit = (starts[-1].get("versions") or {}).get("ssljax", "?"), starts[-1].get("commit")
    return f"{version} {commit}" if commit else version


if __name__ == "__main__":
    main()
