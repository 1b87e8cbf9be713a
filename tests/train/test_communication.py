"""Collectives of a step, read from the compiled text: layers are gathered one by one, gradients summed once."""

import dataclasses
import math

import jax
import pytest
from absent_hardware import needs_gpu, needs_tpu
from daily import daily

from ssljax import parallel, runs
from ssljax.config import build
from ssljax.data import DataSpec
from ssljax.parallel import hlo
from ssljax.parallel.topology import topology

LAYERS, WIDTH, LENGTH, VOCABULARY, ROWS = 8, 64, 32, 256, 64
SPEC = DataSpec(
    elements={"tokens": {"shape": [LENGTH], "dtype": "int32"}, "id": {"shape": [], "dtype": "int64"}},
    size=1000,
    vocab_size=VOCABULARY,
    max_len=LENGTH,
    tokens=1000 * LENGTH,
)
PICTURES = DataSpec(
    elements={"image": {"shape": [16, 16, 3], "dtype": "uint8"}, "id": {"shape": [], "dtype": "int64"}}, size=1000
)
GPT = {
    "model": {"name": "gpt", "preset": None, "width": WIDTH, "depth": LAYERS, "heads": 8},
    "objective": {"name": "causal_lm"},
    "data": {"source": "builtin:python-docs", "seq_len": LENGTH},
    "optimizer": {"name": "adamw"},
    "steps": 10,
    "batch_size": ROWS,
}
SIMCLR = {
    **GPT,
    "model": {"name": "vit", "preset": None, "width": WIDTH, "depth": LAYERS, "heads": 8, "patch_size": 8},
    "objective": {"name": "simclr", "projector": {"hidden": 64, "output": 64}},
    "data": {"source": "builtin:digits"},
}
ABSENT = [
    pytest.param("v5e:2x4", marks=[pytest.mark.full, needs_tpu]),
    pytest.param("h100:8", marks=[pytest.mark.full, needs_gpu]),
]


def compiled(values, target, mesh, microbatches=1, **changes):
    """(parameters' shapes, collectives) of the train step of a config."""
    config = build({**values, "mesh": {"data": 1, **mesh}, "microbatches": microbatches, **changes})
    assembly = runs.assemble(config, topology(target).devices, SPEC if values is GPT else PICTURES)
    program = assembly.program
    with parallel.mesh_context(program.mesh):
        step = program.jitted_step().lower(program.target(), assembly.batch_target()).compile()
    return program.shapes.params, hlo.collectives(hlo.parse(step.as_text()))


def size(shape):
    return math.prod(shape.shape) * shape.dtype.itemsize


def summed(found):
    """Bytes of the arrays that are summed over devices in a step."""
    return sum(c.bytes * c.count for c in found if c.kind in ("all-reduce", "reduce-scatter"))


@pytest.mark.parametrize("target", ["cpu:8", *ABSENT])
def test_the_scan_over_layers_gathers_one_layer_at_a_time(target):
    """No device ever holds the gathered parameters of the stack: the largest gathered array is one of a layer."""
    params, found = compiled(GPT, target, {"fsdp": 8})
    stack = jax.tree.leaves(params["encoder"]["stack"]["layers"])
    of_a_layer = max(size(leaf) // LAYERS for leaf in stack)
    gathers = [c for c in found if c.kind == "all-gather"]
    # XLA for GPUs gathers all arrays of a layer at once, and the first layer of the loop with the one before it.
    at_once = 2 * sum(size(leaf) // LAYERS for leaf in stack) if target.startswith("h100") else of_a_layer
    assert max(c.bytes for c in gathers) <= max(at_once, VOCABULARY * WIDTH * 4)
    # Forward and backward; pipelining takes the first or last layer out of the loop.
    matrices = sum(size(leaf) for leaf in stack if leaf.ndim > 2)
    assert sum(c.bytes * c.count for c in gathers) >= 1.9 * matrices


@pytest.mark.parametrize("target", ["cpu:8", *ABSENT])
@pytest.mark.parametrize("values", daily([GPT, SIMCLR], 2), ids=["not coupled", "coupled"])
@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 8, "shard": "optimizer"}], ids=["data", "ZeRO-1"])
def test_gradients_of_slices_are_summed_over_devices_once(target, values, mesh):
    """Each device adds up the gradients of its rows in all slices, where it holds whole gradients anyway."""
    params, one = compiled(values, target, mesh)
    _, four = compiled(values, target, mesh, microbatches=4)
    gradients = sum(map(size, jax.tree.leaves(params)))
    assert summed(one) >= gradients
    assert summed(four) <= 1.15 * summed(one), "gradients are summed in every slice"


def test_gradients_that_fsdp_splits_are_summed_in_every_slice():
    """No device has memory for whole gradients, so they are summed and split before the next slice."""
    params, four = compiled(GPT, "cpu:8", {"fsdp": 8}, microbatches=4)
    assert 4 <= summed(four) / sum(map(size, jax.tree.leaves(params))) <= 4.4


def test_a_mesh_of_both_sums_over_data_once():
    """With data 2 and fsdp 4, slices sum within `fsdp` only; over `data`, gradients are summed once."""
    params, four = compiled(GPT, "cpu:8", {"data": 2, "fsdp": 4}, microbatches=4)
    shape = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1, "expert": 1}
    over_data = [c for c in four if c.kind == "all-reduce" and "data" in c.axes(shape)]
    gradients = sum(map(size, jax.tree.leaves(params)))
    assert sum(c.bytes * c.count for c in over_data) <= 0.4 * gradients  # 1/4 and what fsdp does not split


@pytest.mark.parametrize("target", ABSENT)
def test_fused_attention_compiles_in_slices(target):
    """Kernels that the partitioner cannot split need every mesh axis to be manual, also within sums of gradients."""
    model = {**GPT["model"], "dtype": "bfloat16", "width": 256, "heads": 4}
    spec = dataclasses.replace(
        SPEC, elements={**SPEC.elements, "tokens": {"shape": [256], "dtype": "int32"}}, max_len=256
    )
    for mesh in ({"data": 8}, {"data": 4, "tensor": 2}):
        config = build({**GPT, "model": model, "mesh": mesh, "microbatches": 4, "batch_size": 64})
        assembly = runs.assemble(config, topology(target).devices, spec)
        # Tests compute in "highest" precision, which the TPU kernel does not have for bfloat16.
        with parallel.mesh_context(assembly.program.mesh), jax.default_matmul_precision("default"):
            step = assembly.program.jitted_step().lower(assembly.program.target(), assembly.batch_target())
            assert "custom_call" in step.as_text() and step.compile()
