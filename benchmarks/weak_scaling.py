"""Weak scaling by bytes: what a device sends in a step on 1 to 8 devices, beside theory; writes docs/weak_scaling.md.

    python benchmarks/weak_scaling.py [PLATFORM [AXIS ...]]

Steps are compiled for devices of this machine's processor ("cpu"), or of absent ones ("h100", "v5e"; the extras
`plan-gpu` and `plan-tpu`), and not run: bytes of collectives do not depend on speed. The page has a table for each
platform, which is written when all axes are measured.
The batch of a device stays the same. Theory counts, for a ring of n devices, P parameters of 4 bytes, L layers, and b
sequences of T vectors of width D on a device (float32):

    data     the gradients are summed: 2 (n-1)/n 4P
    fsdp     parameters are gathered forward and backward, gradients summed and split: 3 (n-1)/n 4P (Rajbhandari et al.
             2020, section 7)
    tensor   two sums of activations in each layer, forward and backward: 4 L 2 (n-1)/n 4bTD (Shoeybi et al. 2019,
             section 3); b is the whole batch
    context  keys and values travel around the ring forward; they and their gradients backward, which then go home:
             L (n-1 + 2 (n-1) + 1) 2 4bTD/n for n > 1 (the batch is the same on all devices, T is split); the gradients
             are summed as for data (`ssljax/layers/ring.py`)
    ring     the vectors [2b, D] of each device travel around the ring forward, and once more backward:
             2 (n-1) 4 2bD, and the gradients are summed as for data
"""

import math
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from pages import fill, markdown

from ssljax import parallel, runs
from ssljax.config import build
from ssljax.data import DataSpec
from ssljax.parallel import hlo
from ssljax.parallel.topology import topology

PAGE = pathlib.Path(__file__).parent.parent / "docs/weak_scaling.md"
COUNTS = (1, 2, 4, 8)
LAYERS, WIDTH, LENGTH, VOCABULARY = 12, 256, 256, 512
TEXT = DataSpec(
    elements={"tokens": {"shape": [LENGTH], "dtype": "int32"}, "id": {"shape": [], "dtype": "int64"}},
    size=10**6,
    vocab_size=VOCABULARY,
    max_len=LENGTH,
    tokens=10**6 * LENGTH,
)
IMAGES = DataSpec(
    elements={"image": {"shape": [32, 32, 3], "dtype": "uint8"}, "id": {"shape": [], "dtype": "int64"}}, size=10**6
)
COMMON = {"optimizer": {"name": "adamw"}, "steps": 100, "evals": {}}
GPT = {
    **COMMON,
    "model": {"name": "gpt", "preset": None, "width": WIDTH, "depth": LAYERS, "heads": 8},
    "objective": {"name": "causal_lm"},
    "data": {"source": "builtin:python-docs", "seq_len": LENGTH},
}
SIMCLR = {
    **COMMON,
    "model": {"name": "vit", "preset": None, "width": 64, "depth": 2, "heads": 4, "patch_size": 8, "pool": "mean"},
    "objective": {"name": "simclr", "form": "ring", "projector": {"hidden": 128, "output": 512}},
    "data": {"source": "builtin:digits"},
}
ROWS = 4  # examples of a device; of the whole batch for tensor; 1,024 for ring


def summed(n: int, size: float) -> float:
    """Bytes that a device sends for a sum over n devices."""
    return 2 * (n - 1) / n * size


# axis of parallelism -> (config, its mesh axis, examples of n devices, description of the data, theory of n and P)
CASES: dict[str, tuple[dict[str, Any], str, Callable[[int], int], DataSpec, Callable[[int, int], float]]] = {
    "data": (GPT, "data", lambda n: ROWS * n, TEXT, lambda n, p: summed(n, 4 * p)),
    "fsdp": (GPT, "fsdp", lambda n: ROWS * n, TEXT, lambda n, p: 1.5 * summed(n, 4 * p)),
    "tensor": (GPT, "tensor", lambda n: ROWS, TEXT, lambda n, p: 4 * LAYERS * summed(n, 4 * ROWS * LENGTH * WIDTH)),
    "context": (
        GPT,
        "context",
        lambda n: ROWS,
        TEXT,
        lambda n, p: (n > 1) * LAYERS * (3 * (n - 1) + 1) * 2 * 4 * ROWS * LENGTH * WIDTH / n + summed(n, 4 * p),
    ),
    "ring": (
        SIMCLR,
        "data",
        lambda n: 1024 * n,
        IMAGES,
        lambda n, p: 2 * (n - 1) * 4 * 2 * 1024 * 512 + summed(n, 4 * p),
    ),
}


NAMES = {"cpu": "cpu:8", "h100": "h100:8", "v5e": "v5e:2x4"}  # of topologies


def measured(name: str, n: int, platform: str = "cpu") -> tuple[float, float]:
    """Returns (bytes that a device sends in a step, the same in theory)."""
    values, axis, examples, spec, theory = CASES[name]
    mesh = {"data": 1, **{axis: n}}
    config = build({**values, "mesh": mesh, "batch_size": examples(n)})
    assembly = runs.assemble(config, topology(NAMES[platform]).devices[:n], spec)
    program = assembly.program
    with parallel.mesh_context(program.mesh):
        compiled = program.jitted_step().lower(program.target(), assembly.batch_target()).compile()
    ours = sum(c.sent for c in hlo.collectives(hlo.parse(compiled.as_text())))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.shapes.params))
    return ours, theory(n, parameters)


def rows(platform: str, names: list[str]) -> Iterator[tuple[str, ...]]:
    for name in names:
        for n in COUNTS:
            ours, theory = measured(name, n, platform)
            ratio = f"{ours / theory:.2f}" if theory else ""
            yield name, f"{n}", f"{ours / 1e6:,.2f}", f"{theory / 1e6:,.2f}", ratio


def main() -> None:
    body = []
    platform, *names = sys.argv[1:] or ["cpu"]
    for cells in rows(platform, names or list(CASES)):
        body.append(cells)
        print(" | ".join(cells), flush=True)
    if not names:
        head = ("axis", "devices", "ours, MB", "theory, MB", "ours / theory")
        fill(PAGE, f"benchmarks/weak_scaling.py {platform}", markdown(head, body))


if __name__ == "__main__":
    main()
