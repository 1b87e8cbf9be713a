"""Time and memory of attention by kernel and length, forward and backward.

    python benchmarks/attention.py                    # causal and full, lengths 512 to 8,192

8 heads of width 64, one sequence, float32. Times are medians of 3 runs after a first one. Memory is the size of
temporaries in the compiled program, without inputs and outputs.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from ssljax.layers.attention import KERNELS, LogitTransform, attend, choose
from ssljax.layers.masks import Causal, Full


def measured(kernel: str, length: int, causal: bool) -> tuple[float, float] | str:
    """Returns (seconds, MiB), or the reason why the kernel does not apply."""
    mask = Causal() if causal else Full()
    q, k, v = (jax.random.normal(key, (1, length, 8, 64)) for key in jax.random.split(jax.random.key(0), 3))
    choice = choose(q, k, v, mask, LogitTransform(0.125), platform=jax.default_backend(), kernel=kernel)
    if kernel in choice.refused:
        return choice.refused[kernel]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(attend(q, k, v, mask, kernel=kernel, strict=True)))

    run = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile()
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(run(q, k, v))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), run.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    lengths = parser.parse_args().lengths
    table = Table("length", "mask", *(f"{kernel}, s and MiB" for kernel in KERNELS))
    for causal in (True, False):
        for length in lengths:
            cells = []
            for kernel in KERNELS:
                found = measured(kernel, length, causal)
                cells.append(found if isinstance(found, str) else f"{found[0]:.3f} {found[1]:.0f}")
            table.add_row(str(length), "causal" if causal else "full", *cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
