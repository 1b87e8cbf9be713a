"""Parameters and FLOPs of runs, against counts of traced and compiled programs.

The compiler's own count, of models of a more usual width: pytest -m full tests/runs/test_accounting.py (4 minutes).
"""

import dataclasses

import flax.linen as nn
import jax
import pytest
import tiny_objectives as tiny
from daily import at_most

from ssljax import models, objectives, parallel, runs
from ssljax.base.durations import RunLengths
from ssljax.config import build
from ssljax.layers.masks import Full
from ssljax.layers.roles import declarations
from ssljax.parallel.roofline import matrix_products
from ssljax.runs.accounting import by_role, cost
from ssljax.train.optimization import Optimization
from ssljax.train.optimizers import REGISTRY
from ssljax.train.program import Program

TEXT = {"model": {"name": "gpt", "preset": None, "width": 32, "depth": 2, "heads": 2}}
RUN = {
    **TEXT,
    "objective": {"name": "causal_lm"},
    "data": {"source": "builtin:python-docs", "seq_len": 64},
    "optimizer": {"name": "adamw"},
    "steps": 7,
    "batch_size": 8,
    "evals": {},
}


def step_of(objective):
    """(program, shapes of a batch) of an objective on one device."""
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tiny.batch())
    rule = Optimization(REGISTRY.get("adamw")(), lambda step: 1.0, RunLengths(tiny.BATCH, 1000, 12, total_steps=10))
    return Program.build(objective, rule, parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1]), batch), batch


# The program computes more where its kernels compute pairs that a causal mask excludes, or the attention again in the
# backward pass, and where patches are projected before most of them are dropped: shares that are large in tiny models.
@pytest.mark.parametrize("name", at_most(objectives.REGISTRY, 4))
def test_flops_of_every_objective_are_those_of_its_step(name):
    objective = tiny.make(name)
    program, batch = step_of(objective)
    with parallel.mesh_context(program.mesh):
        products = sum(matrix_products(jax.make_jaxpr(program.step)(program.shapes, batch).jaxpr).values())
    counted = 3 * objective.flops(tiny.SPEC) * tiny.BATCH
    more = {"mae": 1.14, "i_jepa": 1.06, "causal_lm": 1.08, "image_gpt": 1.24}.get(name, 1.04)
    assert 0.985 < products / counted < more


def wide(values):
    """The groups of a tiny config with models eight times as wide, unrolled, without noise."""
    if not isinstance(values, dict):
        return values
    out = {k: wide(v) for k, v in values.items() if k not in ("dropout", "drop_path")}
    scale = {"width": 8, "hidden": 8, "output": 8, "bottleneck": 8, "prototypes": 8, "embed_dim": 8}
    out = {k: v * scale.get(k, 1) if isinstance(v, int) else v for k, v in out.items()}
    return {**out, "scan": False} if {"depth", "width"} <= out.keys() and "heads" in out else out


@pytest.mark.full
@pytest.mark.parametrize("name", objectives.REGISTRY)
def test_flops_of_every_objective_are_near_the_compilers_count(name):
    groups = wide(tiny.config(name))
    objective = objectives.create(groups, tiny.SPEC, tiny.STEPS)
    program, batch = step_of(objective)
    with parallel.mesh_context(program.mesh):
        compiled = jax.jit(program.step).lower(program.shapes, batch).compile()
    counted = 3 * objective.flops(tiny.SPEC) * tiny.BATCH
    # The compiler also counts the optimiser and elementwise operations, and views.
    assert 0.95 < compiled.cost_analysis()["flops"] / counted < 1.35


def test_parameters_by_role():
    spec = dataclasses.replace(tiny.SPEC, vocab_size=64)
    module = models.create(TEXT["model"], spec)
    boxed = jax.eval_shape(
        lambda: module.init(jax.random.key(0), tiny.batch()["tokens"], method="init_all", mask=Full())
    )
    counts = by_role(declarations(boxed["params"]), nn.unbox(boxed["params"]))
    blocks = 2 * (4 * 32 * 32 + 2 * 32 * 128)
    assert counts["embedding"] == 64 * 32 and counts["matrix"] == blocks
    assert sum(counts.values()) == sum(x.size for x in jax.tree.leaves(nn.unbox(boxed["params"])))


def test_a_run_of_seven_steps():
    assembly = runs.assemble(build(RUN))
    found = cost(assembly)
    assert found.examples == 56 and found.tokens == 56 * 64
    assert found.unique_tokens == pytest.approx(assembly.spec.tokens * 56 / assembly.spec.size, abs=1)
    assert found.flops == 3 * assembly.program.objective.flops(assembly.spec) * 56
    assert found.total - found.non_embedding == found.parameters["embedding"] + found.parameters.get("position", 0)
    assert found.epochs == 56 / assembly.spec.size


def test_tokens_that_repeat_are_unique_once():
    assembly = runs.assemble(build({**RUN, "steps": "3 epochs"}))
    found = cost(assembly)
    assert found.unique_tokens == assembly.spec.tokens and found.epochs >= 3
