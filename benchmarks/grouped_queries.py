"""Bits per byte and decoding speed with fewer heads of keys and values (Ainslie et al. 2023).

    python benchmarks/grouped_queries.py [--steps 600] [--seeds 3]

Trains a GPT with eight heads of keys and values on text. From it, models with eight, two and one such heads are
initialised (`init_from`) and trained for 5% of its steps. A head of the new model is the mean of a group of old heads,
the first of the group, or random. Decoding: 16 rows, 100 new tokens, with the cache. Takes about ten
minutes on two cores.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import numpy as np
import rich.console
import rich.table

from ssljax import run, runs
from ssljax.config import load
from ssljax.evals.generation import Sampling, generate

CONFIG = "configs/text/causal_lm.py"
KEYS_AND_VALUES = "attention/[kv]/"
# name: heads of keys and values, further keys of `init_from`
VARIANTS = {
    "8 heads, trained on": (8, {}),
    "2 heads, mean": (2, {"heads": "mean"}),
    "2 heads, first": (2, {"heads": "first"}),
    "2 heads, random": (2, {"exclude": [KEYS_AND_VALUES]}),
    "1 head, mean": (1, {"heads": "mean"}),
    "1 head, first": (1, {"heads": "first"}),
    "1 head, random": (1, {"exclude": [KEYS_AND_VALUES]}),
}


def trained(folder, steps, seed, **groups):
    """Trains a run in `folder` and returns its held-out bits per byte."""
    config, _ = load(CONFIG, [("model.heads", "8"), ("steps", str(steps)), ("seed", str(seed))])
    mapping = config.to_dict()
    for group, values in groups.items():
        mapping[group] = values if "name" in values else {**(mapping.get(group) or {}), **values}
    mapping["log"]["progress"] = False
    return next(
        row["metrics"]["bits_per_byte"] for row in run.train(mapping, folder).evaluations if row["of"] == "trained"
    )


def tokens_per_second(folder):
    """Tokens per second of greedy decoding of 16 rows; the median of three."""
    learned = runs.read_trained(folder)
    prompts = np.random.default_rng(0).integers(0, 256, (16, 16))

    def once():
        began = time.perf_counter()
        generate(learned.objective.model, learned.model_params, prompts, Sampling(max_new_tokens=100))
        return 16 * 100 / (time.perf_counter() - began)

    once()
    return statistics.median(once() for _ in range(3))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    bits = {name: [] for name in ("8 heads, before", *VARIANTS)}
    rates = {}
    short = max(1, arguments.steps // 20)
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.seeds):
            whole = pathlib.Path(temporary) / f"{seed}"
            bits["8 heads, before"].append(trained(whole, arguments.steps, seed))
            for name, (heads, start) in VARIANTS.items():
                folder = pathlib.Path(temporary) / f"{seed} {name}"
                more = {"model": {"kv_heads": heads}, "init_from": {"path": str(whole), **start}}
                more |= {"schedule": {"name": "constant", "warmup": 0}, "optimizer": {"learning_rate": 1e-3}}
                bits[name].append(trained(folder, short, seed, **more))
                rates.setdefault(heads, tokens_per_second(folder))
    table = rich.table.Table("model", "bits per byte", "spread", "decoding, tokens/s")
    for name, values in bits.items():
        heads = VARIANTS.get(name, (8, {}))[0]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        table.add_row(name, f"{statistics.mean(values):.3f}", f"{spread:.3f}", f"{rates[heads]:,.0f}")
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
