"""Held-out loss and speed with activations in float32, bfloat16, and float16 with a loss scale.

    python benchmarks/mixed_precision.py [--steps 300] [--seeds 3]

Parameters are float32; data and seeds are the same for all types. A type counts as equal to float32 if the difference
of the means is within the standard deviation over seeds. CPUs emulate half precision, so these speeds do not predict
the speeds on a GPU or a TPU.
"""

import argparse
import json
import pathlib
import statistics
import tempfile

import rich.console
import rich.table

from ssljax import run
from ssljax.config import load

CONFIG = "configs/text/causal_lm.py"


def trained(folder, dtype, steps, seed):
    """Trains a run and returns (held-out bits per byte, tokens per second, number of skipped steps)."""
    overrides = [("model.dtype", dtype), ("steps", str(steps)), ("seed", str(seed)), ("log.progress", "false")]
    config, _ = load(CONFIG, overrides)
    bits = next(
        row["metrics"]["bits_per_byte"] for row in run.train(config, folder).evaluations if row["of"] == "trained"
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return bits, statistics.median(rates), max(line.get("skipped_steps", 0) for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    table = rich.table.Table("activations", "bits per byte", "spread", "tokens/s", "skipped steps")
    with tempfile.TemporaryDirectory() as temporary:
        for dtype in ("float32", "bfloat16", "float16"):
            runs = [
                trained(pathlib.Path(temporary) / f"{dtype}-{seed}", dtype, arguments.steps, seed)
                for seed in range(arguments.seeds)
            ]
            bits, rates, skipped = zip(*runs)
            spread = statistics.stdev(bits) if len(bits) > 1 else float("nan")
            row = (
                f"{statistics.mean(bits):.4f}",
                f"{spread:.4f}",
                f"{statistics.median(rates):,.0f}",
                str(sum(skipped)),
            )
            table.add_row(dtype, *row)
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
