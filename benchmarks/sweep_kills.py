"""Workers of a study that are killed at random: nothing is lost, and nothing is done twice.

    python benchmarks/sweep_kills.py                 # 30 runs, three workers on one ledger
    python benchmarks/sweep_kills.py --runs 6 --seed 1

Three workers (`ssljax sweep`) train the runs of one study. Every few seconds, if a step was logged since the last time,
one of them is killed with signal 9, half of the time together with the process that trains for it, as when a machine
fails; another worker takes its place. When the ledger has no open run, the checks are:

- every run is done, once: 30 rows, all "done";
- metrics.jsonl of every run equals that of an undisturbed run, batch hashes included, except for times;
- its steps are there once and in order, and no two starts of a run overlap in time.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from ssljax import run
from ssljax.base import schema
from ssljax.config import build
from ssljax.scaling.cost import Costs
from ssljax.scaling.driver import plan
from ssljax.scaling.ledger import Ledger
from ssljax.scaling.study import Study, StudyConfig, make_study

WORKERS = 3
BETWEEN = (4.0, 14.0)  # seconds between two kills
CLOCK = {"seconds", "examples_per_second", "data_wait_share", "host_share", "model_flops_per_second", "mfu"}
CONFIG = {
    "model": {"name": "vit", "preset": None, "width": 16, "depth": 2, "heads": 2, "patch_size": 4, "dropout": 0.1},
    "objective": {"name": "simclr", "projector": {"hidden": 16, "output": 8}},
    "data": {"source": "builtin:digits", "max_examples": 200},
    "optimizer": {"name": "adamw"},
    "steps": 120,
    "batch_size": 32,
    "evals": {},
    "log": {"every_steps": 5, "progress": False, "trackers": [], "pictures": False},
    "checkpoint": {"every_steps": 20},
}


def the_study(runs: int) -> Study:
    """Returns a study of so many seeds."""
    return make_study(CONFIG, schema.build(StudyConfig, {"seeds": runs}, "study"), "kills", Costs())


def start(store: pathlib.Path, log: Any) -> subprocess.Popen:
    """Starts a worker of the store."""
    command = [sys.executable, "-m", "ssljax.cli", "sweep", "--workdir", str(store)]
    return subprocess.Popen(command, stdout=log, stderr=log)


def children(pid: int) -> list[int]:
    """Returns the processes that a process has started."""
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(number) for number in path.read_text().split()] if path.exists() else []


def steps(ledger: Ledger) -> int:
    """Returns the number of logged steps of all runs."""
    return sum(ledger.progress(row.hash)[0] for row in ledger.rows("kills"))


def disturb(store: pathlib.Path, seed: int, limit: float) -> dict[str, int]:
    """Lets workers train a study, and kills one after the other. Returns how often which kind was killed."""
    chance, kills = random.Random(seed), {"workers": 0, "workers with their trainers": 0}
    ledger, ended, trained = Ledger(store), time.monotonic() + limit, 0
    with open(store / "workers.txt", "ab") as log:
        workers = [start(store, log) for _ in range(WORKERS)]
        try:
            while ledger.is_open("kills") and time.monotonic() < ended:
                time.sleep(chance.uniform(*BETWEEN))
                if (now := steps(ledger)) == trained and ledger.is_open("kills"):
                    continue
                trained = now
                number = chance.randrange(WORKERS)
                victim = workers[number]
                with_trainers = chance.random() < 0.5
                if victim.poll() is None:
                    trainers = children(victim.pid) if with_trainers else []
                    victim.send_signal(signal.SIGKILL)
                    for pid in trainers:
                        with contextlib.suppress(ProcessLookupError):  # it has ended
                            os.kill(pid, signal.SIGKILL)
                    kills["workers with their trainers" if with_trainers else "workers"] += 1
                victim.wait()
                workers[number] = start(store, log)
            for worker in workers:  # they find nothing to do, and end
                worker.wait(max(1.0, ended + 600 - time.monotonic()))
        finally:
            for worker in workers:
                worker.terminate()  # its runs are saved
    return kills


def numbers(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def spans(workdir: pathlib.Path) -> list[tuple[float, float]]:
    """Returns beginning and end of each start of a run, in seconds since 1970."""
    lines = [json.loads(line) for line in (workdir / "starts.jsonl").read_text().splitlines()]
    began = [datetime.datetime.fromisoformat(line["time"]).timestamp() for line in lines]
    # A start counts from the call of `train`, which is before the time of its line.
    return sorted((at, at + line["seconds"]["total"] - line["seconds"]["start"]) for at, line in zip(began, lines))


def check(store: pathlib.Path, study: Study, reference: pathlib.Path) -> dict[str, int]:
    """Compares the runs of a store with undisturbed ones. Returns the counts of what is right.

    Args:
        store: the store.
        study: its study.
        reference: a folder, in which the undisturbed runs are trained.
    """
    ledger = Ledger(store)
    found = {"done": sum(row.state == "done" for row in ledger.rows("kills")), "equal": 0, "in order": 0, "starts": 0}
    for planned in study.runs:
        workdir = ledger.workdir(planned.hash)
        run.train(build(planned.config.to_dict()), reference / planned.hash)
        found["equal"] += numbers(workdir) == numbers(reference / planned.hash)
        logged, own = [line["step"] for line in numbers(workdir)], spans(workdir)
        apart = all(end <= begin for (_, end), (begin, _) in itertools.pairwise(own))
        found["in order"] += logged == sorted(set(logged)) and apart
        found["starts"] += len(own)
    return found


def soak(
    folder: pathlib.Path, runs: int, seed: int, every: tuple[float, float] = (4.0, 14.0), limit: float = 5400
) -> Any:
    """Trains a study of `runs` runs under kills. Returns (counts of kills, counts of what is right)."""
    study = the_study(runs)
    plan(study, folder / "store")[0].close()
    kills = disturb(folder / "store", seed, limit)
    return kills, check(folder / "store", study, folder / "undisturbed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        kills, found = soak(pathlib.Path(folder), options.runs, options.seed)
    print(f"{options.runs} runs, {WORKERS} workers, {', '.join(f'{n} {kind} killed' for kind, n in kills.items())}")
    print(f"done {found['done']}, equal to undisturbed runs {found['equal']}, steps in order {found['in order']}")
    print(f"{found['starts']} starts, {time.monotonic() - began:.0f} s with the undisturbed runs")
    return 0 if {found[key] for key in ("done", "equal", "in order")} == {options.runs} else 1


if __name__ == "__main__":
    sys.exit(main())
