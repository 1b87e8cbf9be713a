"""A program needs an objective, an optimisation, a mesh and shapes, and nothing else."""

import dataclasses
import math
import re
import typing

import jax
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import daily
from test_step import first_moments

from ssljax import data, parallel
from ssljax.base.durations import RunLengths
from ssljax.config import RunConfig
from ssljax.layers import attention
from ssljax.objectives.base import Variables
from ssljax.train import optimizers
from ssljax.train.metrics import Speedometer
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program, batch_shapes, variable_shapes

SHAPES = batch_shapes(tiny.SPEC, tiny.BATCH)


def build(name="simclr", devices=8, mesh=None, **options):
    mesh = mesh or parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:devices])
    lengths = RunLengths(tiny.BATCH, 1000, tiny.LENGTH, tiny.STEPS)
    optimization = Optimization(optimizers.AdamW(), lambda step: 1.0, lengths)
    return Program.build(tiny.make(name), optimization, mesh, SHAPES, **options)


def test_shapes_of_a_batch_are_those_of_its_arrays():
    batch = tiny.batch()
    assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch) == SHAPES


def test_shapes_of_a_batch_with_streams_are_those_of_its_arrays_and_cost_no_memory():
    keys = {"source": "declared:rows=8,image=4x6x3,label=5", "seq_len": 7, "mode": "documents"}
    stream = {"more": data.StreamPart(source="declared:rows=8,text=100", ratio=0.5)}
    spec = data.describe(data.DataConfig(**keys, streams=stream))
    zeros = data.device_batch(spec.zeros(6))
    assert batch_shapes(spec, 6) == jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), zeros)
    assert batch_shapes(spec, 2**40)["image"].shape == (2**40, 4, 6, 3)


def test_the_step_keeps_the_structure_of_the_state_from_the_first_one():
    """Meters exist from init on, so one compiled step serves the first and all later steps."""
    program = build(ema=0.9)
    state = jax.eval_shape(program.init, 0)
    assert state == program.shapes and "loss" in state.meters
    after, metrics = jax.eval_shape(program.step, state, SHAPES)
    assert after == state and metrics.keys() == state.meters.keys()
    assert jax.tree.structure(program.shardings) == jax.tree.structure(program.shapes)


def test_initialisation_and_step_are_traced_once(monkeypatch):
    """Tracing is most of the time until the first step of a small model."""
    made = type(tiny.make("causal_lm"))
    traced = {"init": 0, "loss": 0}
    for name in traced:

        def counting(self, *arguments, name=name, original=getattr(made, name)):
            traced[name] += 1
            return original(self, *arguments)

        monkeypatch.setattr(made, name, counting)
    program = build("causal_lm", ema=0.9)
    with parallel.mesh_context(program.mesh):
        state, _ = program.jitted_step()(program.jitted_init()(0), program.put(tiny.batch()))
        program.jitted_variables()(0)
    assert int(state.step) == 1 and traced == {"init": 1, "loss": 1}


def test_hyper_settings_are_part_of_the_initial_state():
    state = build(hyper={"objective.temperature": 0.5}).init(0)
    np.testing.assert_array_equal(state.hyper["objective.temperature"], np.float32(0.5))


def test_targets_have_the_shardings_of_the_initial_state():
    program = build("causal_lm")
    with parallel.mesh_context(program.mesh):
        state = program.jitted_init()(0)
        untrained = program.jitted_variables()(0)
    for leaf, target in zip(jax.tree.leaves(state), jax.tree.leaves(program.target()), strict=True):
        assert (leaf.shape, leaf.dtype) == (target.shape, target.dtype)
        assert leaf.sharding.is_equivalent_to(target.sharding, leaf.ndim)
    jax.tree.map(np.testing.assert_array_equal, untrained, Variables(state.params, state.extra))
    alone = variable_shapes(program.objective, SHAPES, program.mesh)
    assert alone == Variables(program.target().params, program.target().extra)
    assert all(leaf.sharding is None for leaf in jax.tree.leaves(variable_shapes(program.objective, SHAPES)))


@dataclasses.dataclass(frozen=True)
class Absent:
    """A stand-in for a mesh of absent devices, with the attributes that the speedometer reads."""

    size: int = 4
    process_index: int = 1
    device_kind: str = "NVIDIA H100 80GB HBM3"

    @property
    def devices(self):
        return np.array([self])


def test_platform_and_device_kind_are_those_of_the_mesh(monkeypatch):
    program = build(devices=2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert program.device_kind == "cpu"
    with parallel.mesh_context(program.mesh):
        assert parallel.platform() == "cpu"
        q = np.zeros((1, 4, 2, 8), np.float32)
        attention.attend(q, q, q, attention.Full())  # choosing the kernel of cuDNN would be an error
    meter = Speedometer(16, None, 1e9, Absent())
    assert meter.peak == 989e12 and meter.devices == 4
    found = meter.read(1, 0.0, 0.0)
    assert found["energy_kwh"] == pytest.approx(4 * 700 * found["seconds"] / 3.6e6)


def test_deterministic_kernels_are_a_free_key():
    field = RunConfig.__dataclass_fields__["deterministic"]
    assert field.metadata["free"] and field.default is False
    program = build("causal_lm", deterministic=True)
    assert program.deterministic and not build("causal_lm").deterministic
    with parallel.mesh_context(program.mesh):
        assert int(program.jitted_init()(0).step) == 0  # options for GPUs are not passed to the compiler for CPUs


def bytes_on_a_device(shapes, shardings):
    """Bytes of a tree of arrays that one device holds."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(s.shape)) * s.dtype.itemsize for s, sharding in leaves)


@pytest.mark.parametrize("shard", daily(typing.get_args(parallel.Shard), 3))
def test_the_axis_fsdp_splits_what_is_asked(shard):
    """ZeRO stages 1 to 3: the results are those of replicated states, and each device holds its share of the state."""
    mesh = parallel.make_mesh(parallel.MeshConfig(data=1, fsdp=8))
    program, whole = build("causal_lm", mesh=mesh, shard=shard, ema=0.9), build("causal_lm", ema=0.9)
    results = []
    for one in (program, whole):
        with parallel.mesh_context(one.mesh):
            state, metrics = one.jitted_step()(one.jitted_init()(0), one.put(tiny.batch()))
            results.append(jax.device_get((first_moments(state), metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)
    held = {
        part: bytes_on_a_device(getattr(program.shapes, part), getattr(program.shardings, part))
        / bytes_on_a_device(getattr(whole.shapes, part), getattr(whole.shardings, part))
        for part in ("params", "opt_state", "ema")
    }
    assert held["opt_state"] < 0.2 and held["ema"] < 0.2
    assert held["params"] < 0.2 if shard == "parameters" else held["params"] == 1
    with parallel.mesh_context(mesh):
        text = program.jitted_step().lower(program.target(), program.put(tiny.batch())).as_text()
    split = parallel.shardings(program.axes.params, program.shapes.params, mesh)
    split_leaves = sum("fsdp" in str(sharding.spec) for sharding in jax.tree.leaves(split))
    constraints = len(re.findall(r'sharding_constraint .*"fsdp"', text))
    assert (constraints >= split_leaves) == (shard == "gradients"), "gradients are laid out once, each by a constraint"
