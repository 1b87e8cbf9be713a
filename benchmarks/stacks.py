"""Runs in a stack against the same runs one after the other.

    python benchmarks/stacks.py                      # the quickstart's model and two others, eight learning rates
    python benchmarks/stacks.py --model quickstart   # one of them
    python benchmarks/stacks.py --small              # in a few minutes, to see that it works

A sweep over the learning rate: the config `configs/quickstart.py` with models of several sizes, without evaluations
during the runs and with its evaluations at their ends. "alone" are calls of `ssljax.train` in one process, one for each
rate; "stack" is one call of `ssljax.scaling.stacks.train_stack`. Both write whole workdirs, and both compile: no cache
of compiled programs is used. Columns: seconds of each, and of their parts by starts.jsonl (the sum over runs alone; the
longest of the stack), the ratio, and the largest relative difference of a logged loss.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
from pages import markdown

from ssljax import config as configs
from ssljax import run
from ssljax.config import RunConfig
from ssljax.runs.workdir import Workdir
from ssljax.scaling.stacks import train_stack

MODELS: dict[str, dict[str, int]] = {
    "small": {"width": 32, "depth": 2},
    "quickstart": {"width": 64, "depth": 3},
    "large": {"width": 128, "depth": 6},
}
BATCHES = {"small": 64, "quickstart": 256, "large": 256}
RATES = [1e-3 * 2 ** (k / 2) for k in range(8)]


def sweep(model: str, steps: int, batch_size: int, evaluate: bool) -> list[RunConfig]:
    """The configs of eight learning rates."""
    values: dict[str, Any] = configs.read_file("configs/quickstart.py")
    values |= {"steps": steps, "batch_size": batch_size, "model": {**values["model"], **MODELS[model]}}
    values |= {"log": {"every_steps": 20, "progress": False, "trackers": [], "pictures": False}, "checkpoint": {}}
    values["evals"] = values["evals"] if evaluate else {}
    return [configs.build({**values, "optimizer": {**values["optimizer"], "learning_rate": rate}}) for rate in RATES]


def losses(folder: pathlib.Path) -> list[float]:
    """The logged losses of a run."""
    return [line["loss"] for line in Workdir(folder).metrics()]


def parts(folder: pathlib.Path) -> dict[str, float]:
    """Seconds of a run by starts.jsonl: start and compilation, training, evaluations, checkpoints."""
    seconds = Workdir(folder).starts()[-1]["seconds"]
    rest = ("start", "evaluations", "checkpoints", "waiting")
    return {"start": seconds["start"], "steps": seconds["total"] - sum(seconds[part] for part in rest)}


def measure(name: str, sweep: Sequence[RunConfig], folder: pathlib.Path) -> list[str]:
    """One row of the table."""
    alone, stack = ([folder / kind / str(n) for n in range(len(sweep))] for kind in ("alone", "stack"))
    began = time.perf_counter()
    outcomes = train_stack(sweep, stack)
    together = time.perf_counter() - began
    assert not any(isinstance(outcome, Exception) for outcome in outcomes), outcomes
    jax.clear_caches()
    began = time.perf_counter()
    for one, place in zip(sweep, alone):
        run.train(one, place)
    apart = time.perf_counter() - began
    pairs = [(x, y) for a, b in zip(alone, stack) for x, y in zip(losses(a), losses(b), strict=True)]
    single, joint = [parts(place) for place in alone], parts(stack[0])
    cells = [f"{sum(one[part] for one in single):.1f} / {joint[part]:.1f}" for part in ("start", "steps")]
    difference = max(abs(x - y) / abs(x) for x, y in pairs)
    return [name, f"{apart:.1f}", f"{together:.1f}", *cells, f"{apart / together:.2f}", f"{difference:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), help="one model; all by default")
    parser.add_argument("--steps", type=int, default=100, help="steps of each run")
    parser.add_argument("--evaluate", action="store_true", help="with the evaluations of the config")
    parser.add_argument("--small", action="store_true", help="ten steps of the small model")
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    names = ["small"] if args.small else [args.model] if args.model else list(MODELS)
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            configs_of = sweep(name, 10 if args.small else args.steps, BATCHES[name], args.evaluate)
            rows.append(measure(name, configs_of, pathlib.Path(folder)))
    head = ["model", "alone, s", "stack, s", "start: alone / stack", "steps: alone / stack", "ratio", "difference"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
