"""Compile time of a train step by depth: scanned blocks against unrolled blocks.

    python benchmarks/compile_time.py            # 4, 16 and 64 layers

Seconds from tracing to the compiled program, for loss and gradients of a GPT of width 64 under causal_lm, on the CPU
without a compilation cache. 64 unrolled layers take minutes.
"""

import argparse
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from ssljax import objectives
from ssljax.data import DataSpec
from ssljax.objectives.base import Ctx, stream
from ssljax.train.microbatch import gradients

LENGTH, BATCH = 64, 4


def seconds(depth: int, scan: bool) -> float:
    """Seconds to trace, lower and compile loss and gradients."""
    spec = DataSpec(elements={"tokens": {"shape": [LENGTH], "dtype": "int32"}}, size=100, vocab_size=64, max_len=LENGTH)
    model = {"name": "gpt", "preset": None, "width": 64, "depth": depth, "heads": 4, "scan": scan}
    objective = objectives.create({"model": model, "objective": {"name": "causal_lm"}}, spec)
    batch = {"tokens": jnp.zeros((BATCH, LENGTH), jnp.int32)}
    variables = nn.unbox(jax.eval_shape(lambda: objective.init(jax.random.key(0), batch)))
    ctx = Ctx(stream(0, 0, "encode"), jnp.int32(0), jnp.arange(BATCH, dtype=jnp.int32))

    def step(params, batch):
        return gradients(objective, params, (), batch, ctx, 1).grads

    start = time.perf_counter()
    jax.jit(step).lower(variables.params, batch).compile()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 16, 64])
    depths = parser.parse_args().depths
    table = Table("layers", "scanned, s", "unrolled, s", "ratio")
    for depth in depths:
        scanned, unrolled = seconds(depth, True), seconds(depth, False)
        table.add_row(str(depth), f"{scanned:.2f}", f"{unrolled:.2f}", f"{unrolled / scanned:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
