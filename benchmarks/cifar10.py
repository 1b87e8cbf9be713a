"""ResNet-18 on CIFAR-10 with seven methods, 200 epochs each, beside the published tables of lightly and solo-learn.

    python benchmarks/cifar10.py --minutes 14             # on a machine with a GPU
    python benchmarks/cifar10.py --minutes 14 byol dino   # these methods alone
    python benchmarks/cifar10.py                          # without a GPU: the predicted times

Trains configs/recipes/cifar10.py, one method after the other, in runs/cifar10. When the minutes are over, the run saves
its state and stops; the same command continues it, so short loans of a GPU add up. Keys of the config
(`--config.KEY=VALUE`) are passed on; `--config.data.source` names other files than those of $SSLJAX_DATA. Writes the
table of docs/howto/gpu.md.

The predicted time is the number of steps times the planned time of a step (docs/plans.md), which is a lower bound; it
contains neither compilation nor evaluation.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import time

import plans
from pages import fill, markdown

from ssljax.base import durations
from ssljax.base.durations import RunLengths
from ssljax.config import load
from ssljax.report.facts import duration

PAGE = pathlib.Path(__file__).parent.parent / "docs/howto/gpu.md"
CONFIG, RUNS = "configs/recipes/cifar10.py", pathlib.Path("runs/cifar10")
DATA = (
    "--config.data.source=npz:$SSLJAX_DATA/cifar10_jpeg/{split}.npz",
    "--config.data.keys.image=jpeg@offsets",
    "--config.data.keys.label=labels",
)
PICTURES = 50_000
SAVED = 75  # exit code of a run that saved its state after a signal
# Method -> (k-NN of lightly: k 200, 200 epochs, batch of 128; linear classifier of solo-learn: 1,000 epochs).
PUBLISHED = {
    "simclr": (0.847, 0.9074),
    "byol": (0.869, 0.9258),
    "vicreg": (None, 0.9207),
    "dino": (0.840, 0.8952),
    "swav": (0.812, 0.8917),
    "barlow_twins": (0.842, 0.9210),
    "moco": (0.838, 0.9188),
}


def has_accelerator() -> bool:
    """Asks a process of its own, since a process that looks for a GPU takes its memory."""
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() not in ("", "cpu")


def predicted(method: str) -> float | None:
    """Seconds of the steps of a run by its plan; None: it is not planned."""
    (unit,) = [unit for unit in plans.units("cifar10") if unit[0].endswith(f"method={method}")]
    plan = plans.ledger().get(unit[2], {}).get("plan")
    if plan is None:
        return None
    config = load(unit[0])[0]
    lengths = RunLengths(batch_size=config.batch_size, dataset_size=PICTURES)
    return durations.steps(config.steps, lengths, "steps") * plan["roofline"]["serial"]


def train(method: str, deadline: float, overrides: list[str]) -> None:
    """Trains or continues a method until it is finished or time is over.

    Raises:
        SystemExit: the run failed.
    """
    command = [sys.executable, "-m", "ssljax.cli", "train", "--config", f"{CONFIG}:method={method}"]
    process = subprocess.Popen([*command, "--workdir", str(RUNS / method), *DATA, *overrides])
    try:
        code = process.wait(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code not in (0, SAVED):
        sys.exit(f"{method}: exit code {code}")


def measured(method: str) -> tuple[str, str]:
    """(Accuracy of k-NN, accuracy of the linear classifier) of a finished run, or two empty strings."""
    path = RUNS / method / "evals.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = {line["eval"]: line["metrics"]["accuracy"] for line in lines if line["of"] == "trained"}
    knn, linear = (f"{found[name]:.3f}" if name in found else "" for name in ("knn", "linear"))
    return knn, linear


def table(methods: list[str]) -> str:
    """Our numbers beside the published ones, and predicted times."""
    head = [
        "method",
        "k-NN 200",
        "lightly",
        "linear, 200 epochs",
        "solo-learn, 1,000 epochs",
        "predicted time of steps",
    ]
    rows = []
    for method in methods:
        (knn, linear), seconds = measured(method), predicted(method)
        lightly, solo = ("" if value is None else f"{value:.3f}" for value in PUBLISHED[method])
        rows.append([method, knn, lightly, linear, solo, "not planned" if seconds is None else duration(seconds)])
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", choices=[[], *PUBLISHED], default=[], metavar="METHOD")
    parser.add_argument("--minutes", type=float, default=14, help="time of this sitting (default: 14)")
    parser.add_argument("--cpu", action="store_true", help="train although there is no accelerator")
    options, overrides = parser.parse_known_args()
    methods, deadline = options.methods or list(PUBLISHED), time.monotonic() + 60 * options.minutes
    if options.cpu or has_accelerator():
        for method in methods:
            if time.monotonic() < deadline and not all(measured(method)):
                train(method, deadline, overrides)
    else:
        print("No accelerator: nothing is trained.\n")
    print(table(methods))
    fill(PAGE, "benchmarks/cifar10.py", table(list(PUBLISHED)))


if __name__ == "__main__":
    main()
