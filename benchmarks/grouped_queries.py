"""From a head of keys and values for each head of queries to fewer (Ainslie et al. 2023): bits per byte and decoding.

    python benchmarks/grouped_queries.py [--steps 600] [--seeds 3]

A GPT with eight heads of keys and values is trained on text; models with eight, two and one start from it
(`init_from`) and train 5% of the steps. Heads are pooled by their mean, or the first of a group is kept, or they are
drawn anew. Decoding: 16 rows, 256 tokens, with the cache. About ten minutes on two cores.
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
# name: heads of keys and values, what the others start from
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
    """Held-out bits per byte of a run."""
    config, _ = load(CONFIG, [("model.heads", "8"), ("steps", str(steps)), ("seed", str(seed))])
    mapping = config.to_dict()
    for group, values in groups.items():
        mapping[group] = values if "name" in values else {**(mapping.get(group) or {}), **values}
    mapping["log"]["progress"] = False
    return next(row["metrics"]["bits_per_byte"] for row in run.train(mapping, folder) if row["of"] == "trained")


def tokens_per_second(folder):
    """Greedy decoding of 16 rows, the middle of three."""
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
    known = parser.parse_args()
    found = {name: [] for name in ("8 heads, before", *VARIANTS)}
    rates = {}
    short = max(1, known.steps // 20)
    with tempfile.TemporaryDirectory() as place:
        for seed in range(known.seeds):
            whole = pathlib.Path(place) / f"{seed}"
            found["8 heads, before"].append(trained(whole, known.steps, seed))
            for name, (heads, start) in VARIANTS.items():
                folder = pathlib.Path(place) / f"{seed} {name}"
                more = {"model": {"kv_heads": heads}, "init_from": {"path": str(whole), **start}}
                more |= {"schedule": {"name": "constant", "warmup": 0}, "optimizer": {"learning_rate": 1e-3}}
                found[name].append(trained(folder, short, seed, **more))
                rates.setdefault(heads, tokens_per_second(folder))
    table = rich.table.Table("model", "bits per byte", "spread", "decoding, tokens/s")
    for name, values in found.items():
        heads = VARIANTS.get(name, (8, {}))[0]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        table.add_row(name, f"{statistics.mean(values):.3f}", f"{spread:.3f}", f"{rates[heads]:,.0f}")
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
