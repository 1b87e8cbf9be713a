"""Predicted against measured time of a step on the devices that are here; writes a table of docs/plans.md.

    python benchmarks/plan_calibration.py

A row is a config, compiled and run for ten steps on one device; the median counts. The prediction is that of
`ssljax plan --topology here`, from the rates of `ssljax/parallel/hardware.py`. Needs a quiet machine.
"""

import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np
from pages import fill, markdown

from ssljax import parallel
from ssljax.config import build
from ssljax.parallel.topology import topology
from ssljax.runs.assembly import assemble
from ssljax.runs.plans import plan, time_text

PAGE = pathlib.Path(__file__).parent.parent / "docs/plans.md"
STEPS = 10
COMMON = {"optimizer": {"name": "adamw"}, "steps": 100, "evals": {}}
TEXT = {"objective": {"name": "causal_lm"}, "data": {"source": "declared:tokens=10M,text=8192", "seq_len": 256}}
PICTURES = {"data": {"source": "declared:rows=100k,image=64x64x3"}, "batch_size": 32}
VIT = {"name": "vit", "preset": None, "width": 256, "depth": 6, "heads": 4, "patch_size": 8, "pool": "mean"}
GPT = {"name": "gpt", "preset": None, "width": 256, "depth": 6, "heads": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT of 5M parameters, 8 rows of 256 tokens": {**COMMON, **TEXT, "model": GPT, "batch_size": 8},
    "the same, 32 rows": {**COMMON, **TEXT, "model": GPT, "batch_size": 32},
    "the same, width 512": {**COMMON, **TEXT, "model": {**GPT, "width": 512, "heads": 8}, "batch_size": 8},
    "SimCLR, ViT of 5M parameters, 32 pictures of 64 x 64": {
        **COMMON,
        **PICTURES,
        "model": VIT,
        "objective": {"name": "simclr"},
    },
    "MAE, the same encoder": {**COMMON, **PICTURES, "model": VIT, "objective": {"name": "mae"}},
}


def measured(values: dict[str, Any], devices: list[Any]) -> float:
    """Median time of a step, on rows of zeros."""
    config = build(values)
    assembly = assemble(config, devices)
    program, taken = assembly.program, []
    with parallel.mesh_context(program.mesh):
        batch = program.put(assembly.spec.zeros(config.batch_size) | {"id": np.arange(config.batch_size)})
        state, step = program.jitted_init()(0), program.jitted_step()
        for _ in range(STEPS + 2):
            start = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def main() -> None:
    here = topology("here")
    devices = here.devices[:1]
    head, body = ("config", "device", "predicted", "bound by", "measured", "measured / predicted"), []
    for name, values in CONFIGS.items():
        found = plan(build(values), type(here)("here", devices, here.chip))
        assert found.roofline is not None
        seconds, predicted = measured(values, devices), found.roofline.overlapped
        cells = [name, found.device_kind, time_text(predicted), found.roofline.bound, time_text(seconds)]
        body.append([*cells, f"{seconds / predicted:.2f}"])
        print(" | ".join(body[-1]), flush=True)
    fill(PAGE, "benchmarks/plan_calibration.py", markdown(head, body))


if __name__ == "__main__":
    main()
