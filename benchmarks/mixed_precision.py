"""Activations in float32, bfloat16 and float16 with a loss scale: where runs end, and what a step takes.

    python benchmarks/mixed_precision.py [--steps 300] [--seeds 3]

Parameters are float32 in all of them. The same data, the same seeds; a type is as good as float32 if its mean lies
within the spread of seeds. On a CPU half precision is emulated and slow; on a GPU or a TPU it is what is fast.
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
    """(held-out bits per byte, tokens a second, steps skipped)."""
    overrides = [("model.dtype", dtype), ("steps", str(steps)), ("seed", str(seed)), ("log.progress", "false")]
    config, _ = load(CONFIG, overrides)
    bits = next(row["metrics"]["bits_per_byte"] for row in run.train(config, folder) if row["of"] == "trained")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return bits, statistics.median(rates), max(line.get("skipped_steps", 0) for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    known = parser.parse_args()
    table = rich.table.Table("activations", "bits per byte", "spread", "tokens/s", "steps skipped")
    with tempfile.TemporaryDirectory() as place:
        for dtype in ("float32", "bfloat16", "float16"):
            runs = [
                trained(pathlib.Path(place) / f"{dtype}-{seed}", dtype, known.steps, seed)
                for seed in range(known.seeds)
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
