"""Random faults in jobs of several processes: the rate of recovery in docs/faults.md.

    python benchmarks/soak.py --trials 60            # run what is missing of 60 trials, then write the table
    python benchmarks/soak.py --trials 200           # go on to 200
    python benchmarks/soak.py --table                # only write the table

A trial starts a short run with a random number of processes under the supervisor, injects one random fault at a random
step, and starts the same command again until the run is finished. A trial has recovered if

- the job ended within `BOUND` seconds of the fault, with its supervisor's line,
- the restart continued from the last complete checkpoint: it lost at most the steps between two checkpoints, and two
  that were under way; if the newest checkpoint is damaged, one interval more,
- the metrics of every step, the hash of the batch among them, equal those of an undisturbed run bit for bit.

Finished trials are lines of docs/faults.jsonl, so an interrupted soak continues. Everything runs on CPU devices.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from pages import fill, markdown

ROOT = pathlib.Path(__file__).parent.parent
LEDGER, PAGE = ROOT / "docs/faults.jsonl", ROOT / "docs/faults.md"
DEVICES, STEPS, EVERY, BOUND = 4, 40, 5, 60.0
LOST, OTHER, HANG = "more steps lost than there are between checkpoints", "another trajectory", "hang"  # outcomes
CLOCK = {"seconds", "examples_per_second", "data_wait_share", "host_share", "model_flops_per_second"}
CONFIG = {
    "model": {"name": "vit", "preset": None, "width": 16, "depth": 2, "heads": 2, "patch_size": 4, "dropout": 0.1},
    "objective": {"name": "simclr", "projector": {"hidden": 16, "output": 8}},
    "data": {"source": "builtin:digits"},
    "optimizer": {"name": "adamw"},
    "steps": STEPS,
    "batch_size": 32,
    "log": {"every_steps": 1, "progress": False, "trackers": [], "pictures": False},
    "checkpoint": {"every_steps": EVERY, "keep": 3},
}


class Run:
    """A run in a folder, started as often as needed.

    Args:
        folder: an empty folder.
        processes: number of processes, which share `DEVICES` devices.
    """

    def __init__(self, folder: pathlib.Path, processes: int):
        self.folder, self.workdir, self.processes = folder, folder / "run", processes
        (folder / "config.py").write_text(f"def get_config(arg=''):\n    return {CONFIG!r}\n")
        self.output = ""

    def start(self) -> subprocess.Popen:
        """Starts the command and returns its supervisor."""
        options = [
            "-n",
            self.processes,
            "--devices-per-process",
            DEVICES // self.processes,
            "--logs",
            self.folder,
            "--grace",
            20,
        ]
        command = ["bash", ROOT / "launch/local.sh", *options, "train"]
        command += ["--config", self.folder / "config.py", "--workdir", self.workdir]
        environment = {**os.environ, "SSLJAX_HEARTBEAT_SECONDS": "10"}
        with open(self.folder / "output.txt", "a") as file:
            return subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env=environment)

    def pids(self, supervisor: subprocess.Popen) -> list[int]:
        """Numbers of the processes of the job, in their order."""
        found = {}
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                parent = path.joinpath("stat").read_text().rpartition(")")[2].split()[1]
                environment = path.joinpath("environ").read_bytes()
            except OSError:
                continue
            number = re.search(rb"SSLJAX_PROCESS_ID=(\d+)", environment)
            if number and int(parent) == supervisor.pid:
                found[int(number[1])] = int(path.name)
        return [found[number] for number in sorted(found)]

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl so far, without times."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        parsed = [json.loads(line) for line in lines if line.endswith("}")]
        return [{key: value for key, value in line.items() if key not in CLOCK} for line in parsed]

    def last_step(self) -> int:
        return max((line["step"] for line in self.metrics()), default=0)

    def checkpoints(self) -> list[int]:
        """Steps of complete checkpoints."""
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.exists() else []

    def await_step(self, supervisor: subprocess.Popen, step: int, seconds: float = 300) -> bool:
        """Waits until a step is logged; False: the job ended before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.last_step() >= step:
                return True
            if supervisor.poll() is not None:
                return False
            time.sleep(0.02)
        raise TimeoutError(f"step {step} was not reached within {seconds:g} s")


def damage(run: Run, rng: random.Random) -> str:
    """Damages the newest checkpoint, as a disk or a killed copy would."""
    step = run.checkpoints()[-1]
    files = sorted(path for path in (run.workdir / "checkpoints" / str(step)).rglob("*") if path.is_file())
    data = [path for path in files if "/d/" in str(path)] or files
    path, how = rng.choice(data), rng.choice(["cut in half", "a flipped bit", "removed"])
    if how == "removed":
        path.unlink()
    elif how == "cut in half":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(content))
    return how


def _signal(number: int) -> Callable[[Run, subprocess.Popen, random.Random], None]:
    def send(run: Run, supervisor: subprocess.Popen, rng: random.Random) -> None:
        os.kill(rng.choice(run.pids(supervisor)), number)

    return send


def _kill_supervisor(run: Run, supervisor: subprocess.Popen, rng: random.Random) -> None:
    supervisor.kill()


FAULTS: dict[str, Callable[[Run, subprocess.Popen, random.Random], None]] = {
    "kill -9 of a process": _signal(signal.SIGKILL),
    "SIGTERM to a process": _signal(signal.SIGTERM),
    "SIGSTOP of a process": _signal(signal.SIGSTOP),
    "kill -9 of the supervisor": _kill_supervisor,
    "kill -9 of a process, then a damaged checkpoint": _signal(signal.SIGKILL),
}


def trial(number: int, expected: dict[int, list[dict[str, Any]]], folder: pathlib.Path) -> dict[str, Any]:
    """Runs one trial and returns its line.

    Args:
        number: number of the trial, which is its seed.
        expected: number of processes -> metrics of the undisturbed run.
        folder: an empty folder.
    """
    rng = random.Random(number)
    processes, fault = rng.choice(sorted(expected)), list(FAULTS)[number % len(FAULTS)]
    run, at = Run(folder, processes), rng.randrange(2 * EVERY, STEPS - 2 * EVERY)
    line: dict[str, Any] = {"trial": number, "fault": fault, "processes": processes}
    supervisor = run.start()
    try:
        if not run.await_step(supervisor, at):
            return {**line, "outcome": "the job ended before the fault"}
        time.sleep(rng.random() * 0.2)
        began = time.monotonic()
        FAULTS[fault](run, supervisor, rng)
        code = supervisor.wait(BOUND + 60)
        line |= {"code": code, "seconds_to_end": round(time.monotonic() - began, 1)}
        if "supervisor" in fault:
            _await_end(run)
        line["step"] = run.last_step()
        if "damaged" in fault:
            line["damage"] = damage(run, rng)
        began, supervisor = time.monotonic(), run.start()
        finished = run.await_step(supervisor, line["step"] + 1)
        line["seconds_to_recover"] = round(time.monotonic() - began, 1) if finished else None
        if supervisor.wait(300) != 0:
            return {**line, "outcome": f"the restart ended with {supervisor.returncode}"}
    except (subprocess.TimeoutExpired, TimeoutError) as error:
        return {**line, "outcome": f"{HANG}: {error}"}
    finally:
        _clean(run, supervisor)
    resumed = re.findall(r"resumed from the checkpoint of step (\d+)", (folder / "output.txt").read_text())
    line["lost_steps"] = line["step"] - int(resumed[-1]) if resumed else line["step"]
    allowed = EVERY + 2 + (EVERY if "damaged" in fault else 0)  # a step or two are under way when the process dies
    if line["lost_steps"] > allowed:
        return {**line, "outcome": LOST}
    if run.metrics() != expected[processes]:
        return {**line, "outcome": OTHER}
    return {**line, "outcome": "recovered" if line["seconds_to_end"] <= BOUND else "recovered late"}


def _await_end(run: Run) -> None:
    """Waits until no process of a job whose supervisor died is left."""
    deadline = time.monotonic() + BOUND
    marker = str(run.workdir).encode()
    while time.monotonic() < deadline and any(marker in c for c in _command_lines()):
        time.sleep(0.1)


def _command_lines() -> list[bytes]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes() if path.parent.name != str(os.getpid()) else b"")
        except OSError:
            continue
    return found


def _clean(run: Run, supervisor: subprocess.Popen) -> None:
    """Ends what a trial has left."""
    for pid in run.pids(supervisor):
        os.kill(pid, signal.SIGKILL)
    supervisor.kill()
    supervisor.wait()


def ledger() -> list[dict[str, Any]]:
    """Finished trials."""
    return [json.loads(line) for line in LEDGER.read_text().splitlines()] if LEDGER.exists() else []


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row for each fault, with counts and times."""
    head = ["fault", "trials", "recovered", "lost steps, most", "seconds until all processes ended: median, most"]
    head.append("seconds from the restart to a new step: median, most")
    rows = []
    for fault in [*FAULTS, "all"]:
        own = [line for line in lines if fault in (line["fault"], "all")]
        good = [line for line in own if line["outcome"] == "recovered"]
        if own:
            numbers = [_spread(good, key) for key in ("seconds_to_end", "seconds_to_recover")]
            lost = str(max((line["lost_steps"] for line in good), default=""))
            rows.append([fault, str(len(own)), f"{len(good)} ({len(good) / len(own):.0%})", lost, *numbers])
    outcomes = collections.Counter(line["outcome"].partition(":")[0] for line in lines)
    rate = f"Rate of recovery: {outcomes['recovered']} of {len(lines)} ({outcomes['recovered'] / len(lines):.0%})."
    counted = {"more steps lost than allowed": LOST, "other trajectories": OTHER, "hangs": HANG}
    parts = [f"{name}: {outcomes.pop(outcome, 0)}" for name, outcome in counted.items()]
    others = [f"{outcome}: {count}" for outcome, count in outcomes.items() if outcome != "recovered"]
    return f"{markdown(head, rows)}\n\n{rate} Trials with {'; '.join([*parts, *others])}."


def _spread(lines: list[dict[str, Any]], key: str) -> str:
    values = [line[key] for line in lines if line.get(key) is not None]
    return f"{statistics.median(values):.1f}, {max(values):.1f}" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    done = {line["trial"] for line in ledger()}
    todo = [] if arguments.table else [number for number in range(arguments.trials) if number not in done]
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        expected = {}
        for processes in (2, 4) if todo else ():
            folder = pathlib.Path(place) / f"undisturbed-{processes}"
            folder.mkdir()
            run = Run(folder, processes)
            if run.start().wait(600) != 0:
                sys.exit((folder / "output.txt").read_text())
            expected[processes] = run.metrics()
        for number in todo:
            folder = pathlib.Path(place) / str(number)
            folder.mkdir()
            line = trial(number, expected, folder)
            print(json.dumps(line), flush=True)
            if line["outcome"] != "recovered":
                print((folder / "output.txt").read_text()[-3000:], flush=True)
            with LEDGER.open("a") as file:
                file.write(json.dumps(line) + "\n")
            shutil.rmtree(folder)
    fill(PAGE, "benchmarks/soak.py", table(ledger()))


if __name__ == "__main__":
    main()
