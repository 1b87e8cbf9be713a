"""Finetuning against training from random weights: accuracy on held-out data, over three seeds.

    SSLJAX_DATA=... python benchmarks/finetuning.py

Runs configs/finetune/*.py after the pretraining that each needs, with the seeds 0, 1 and 2, in runs/finetuning. A run
that is complete is not repeated. 80 minutes on one CPU core.
"""

import json
import pathlib
import statistics
import subprocess
import sys

RUNS = pathlib.Path("runs/finetuning")
SEEDS = range(3)
TASKS = {"images": "configs/vision/simclr.py", "texts": "configs/text/mlm.py:data=classic-books"}


def train(config: str, workdir: pathlib.Path, seed: int, *overrides: str) -> None:
    """Trains or continues a run."""
    command = [sys.executable, "-m", "ssljax.cli", "train", "--config", config, "--workdir", str(workdir)]
    subprocess.run([*command, f"--config.seed={seed}", "--config.log.progress=false", *overrides], check=True)


def accuracy(workdir: pathlib.Path) -> float:
    """The accuracy of the trained model on held-out data."""
    lines = [json.loads(line) for line in (workdir / "evals.jsonl").read_text().splitlines()]
    return [line["metrics"]["accuracy"] for line in lines if line["of"] == "trained"][-1]


def main() -> None:
    print("| data | finetuned | from random weights | seeds |\n| --- | --- | --- | --- |")
    for name, pretraining in TASKS.items():
        config, found = f"configs/finetune/{name}.py", []
        for seed in SEEDS:
            encoder, tuned, scratch = (RUNS / f"{name}-{kind}-{seed}" for kind in ("encoder", "tuned", "scratch"))
            train(pretraining, encoder, seed)
            train(config, tuned, seed, f"--config.init_from.path={encoder}")
            train(f"{config}:start=random", scratch, seed)
            found.append((accuracy(tuned), accuracy(scratch)))
        cells = [f"{statistics.mean(x):.3f} ± {statistics.stdev(x):.3f}" for x in zip(*found)]
        print("|", " | ".join([name, *cells, str(len(found))]), "|")


if __name__ == "__main__":
    main()
