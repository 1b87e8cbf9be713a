"""The step over a stack of states equals the steps of the runs alone, whose settings are numbers of Python.

The full product of objectives and of meshes: `pytest -m full tests/train/test_stacked.py`.
"""

import dataclasses
import math

import jax
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import daily
from micro_objective import Micro
from test_step import close

from ssljax import objectives, parallel
from ssljax.base import schema
from ssljax.base.durations import RunLengths
from ssljax.train import optimizers
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program
from ssljax.train.stacked import Stacking, state_bytes

STEPS = 3
# Other values than the defaults, for keys whose defaults are None, or are not to be multiplied by 0.9.
OTHER = {"clip_norm": 0.05, "layer_decay": None, "momentum": 0.8, "b2": 0.98}


def micro():
    return Micro(model=None, spec=tiny.SPEC, steps=tiny.STEPS)


def floats(part):
    """The numbers of a configuration that a stack may try to vary, {key: value}."""
    return {k: getattr(part, k) for k in schema.keys(type(part)) if isinstance(getattr(part, k), float)}


def build(objective, rule, mesh, varied=(), microbatches=1):
    lengths = RunLengths(tiny.BATCH, 1000, tiny.LENGTH, tiny.STEPS)
    optimization = Optimization(rule, lambda step: 1.0 / (1 + step), lengths)
    hyper = dict.fromkeys(varied, 0.0)
    return Program.build(objective, optimization, mesh, tiny.batch(), microbatches, 0.9, hyper)


def alone(objective, rule, mesh, seed, first=0, microbatches=1):
    """(state, metrics of the steps) of a run by itself."""
    program, lines = build(objective, rule, mesh, microbatches=microbatches), []
    with parallel.mesh_context(mesh):
        state = program.jitted_init()(seed)
        for i in range(STEPS):
            state, metrics = program.jitted_step()(state, program.put(tiny.batch(first + i)))
            lines.append(jax.device_get(metrics))
    return jax.device_get(state), lines


def stacked(objective, rule, mesh, settings, seeds, firsts, microbatches=1):
    """[(state, metrics of the steps)] of runs in one program; `settings` [K] of {"optimizer.b1": value, ...}."""
    program = build(objective, rule, mesh, settings[0], microbatches)
    stacking = Stacking(program, len(set(seeds)) == 1, len(set(firsts)) == 1)
    with parallel.mesh_context(mesh):
        stack = stacking.empty(len(settings))
        for place, (values, seed) in enumerate(zip(settings, seeds)):
            state = stacking.member(objective, values).jitted_init()(seed)
            stack = stacking.put(stack, place, state, values)
        lines = []
        for i in range(STEPS):
            batches = tuple(program.put(tiny.batch(first + i)) for first in firsts)
            stack, metrics = stacking.jitted_step()(stack, batches[0] if stacking.one_batch else batches)
            lines.append(jax.device_get(metrics))
        states = [jax.device_get(stacking.take(stack, place)) for place in range(len(settings))]
    return [(s, [{k: v[i] for k, v in line.items()} for line in lines]) for i, s in enumerate(states)]


def compare(objective, rule, mesh, settings, seeds, firsts=(0, 0), rtol=1e-5, microbatches=1):
    """Asserts that runs of a stack equal those alone."""
    together = stacked(objective, rule, mesh, settings, seeds, firsts, microbatches)
    for values, seed, first, (state, lines) in zip(settings, seeds, firsts, together):
        own = {
            g: {k.split(".")[1]: v for k, v in values.items() if k.startswith(g)} for g in ("objective", "optimizer")
        }
        one, other = dataclasses.replace(objective, **own["objective"]), dataclasses.replace(rule, **own["optimizer"])
        want, metrics = alone(one, other, mesh, seed, first, microbatches)
        close(lines, metrics, rtol, "metrics")
        assert jax.tree.structure(state) == jax.tree.structure(want)
        close(state.params, want.params, rtol, "params")
        close(state.ema, want.ema, rtol, "ema")
        close((state.extra, state.meters), (want.extra, want.meters), rtol, "extra and meters")
        # 1 - b2 is a difference of float32 in the stack, of float64 alone.
        close(state.opt_state, want.opt_state, 1e-4, "optimiser")
        jax.tree.map(
            np.testing.assert_array_equal, (state.step, state.seed, state.guard), (want.step, want.seed, want.guard)
        )


def one_device():
    return parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("name", daily(list(optimizers.REGISTRY), 4))
def test_every_number_of_an_optimiser_can_vary(name):
    rule = optimizers.REGISTRY.get(name)(clip_norm=0.5, weight_decay=0.1)
    first = {f"optimizer.{key}": value for key, value in floats(rule).items()}
    second = {key: OTHER.get(key.split(".")[1], 0.9 * value) for key, value in first.items()}
    compare(micro(), rule, one_device(), [first, second], seeds=(0, 0))


def test_seeds_data_and_initial_values_vary():
    """The objective's `size` is read by the initialisation alone, and 0.9 of a temperature by the step alone."""
    settings = [
        {"objective.size": 1.0, "objective.temperature": 1.0},
        {"objective.size": 0.5, "objective.temperature": 0.3},
    ]
    compare(micro(), optimizers.AdamW(), one_device(), settings, seeds=(3, 4), firsts=(0, 7))


def test_numbers_that_python_reads_do_not_vary():
    for key in ("objective.smoothing", "objective.keep"):
        with pytest.raises(jax.errors.JAXTypeError):
            build(micro(), optimizers.AdamW(), one_device(), [key])


def test_a_step_that_is_not_finite_changes_no_other_run():
    rule, mesh = optimizers.SGD(momentum=0.0), one_device()
    settings = [{"optimizer.learning_rate": rate} for rate in (0.1, 1e38, 0.2)]
    good = stacked(micro(), rule, mesh, [settings[0], settings[2]], (0, 0), (0, 0))
    first, bad, last = stacked(micro(), rule, mesh, settings, (0, 0, 0), (0, 0, 0))
    assert int(bad[0].guard["skipped"]) >= 2 and int(first[0].guard["skipped"]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(bad[0].params))
    for (state, lines), (want, metrics) in zip((first, last), good):
        close(state.params, want.params, 1e-6, "params")
        close(lines, metrics, 1e-6, "metrics")


def numbers_of(objective):
    """The numbers of a registered objective that can vary, with their values and others."""
    found = {}
    for key, value in floats(objective.unwrapped).items():
        try:
            build(objective, optimizers.SGD(), one_device(), [f"objective.{key}"])
        except jax.errors.JAXTypeError:
            continue
        found[f"objective.{key}"] = (value, 0.9 * value)
    return found


@pytest.mark.full
@pytest.mark.parametrize("name", list(objectives.REGISTRY))
def test_objectives_in_a_stack_equal_runs_alone(name):
    numbers = {**numbers_of(tiny.make(name)), "optimizer.learning_rate": (0.01, 0.02)}
    settings = [{key: values[i] for key, values in numbers.items()} for i in range(2)]
    compare(tiny.make(name), optimizers.SGD(), one_device(), settings, seeds=(0, 1))


@pytest.mark.full
@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("sizes", [(8, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize("name", list(objectives.REGISTRY))
def test_stacks_on_meshes_equal_runs_alone(name, sizes, microbatches):
    mesh = parallel.make_mesh(parallel.MeshConfig(*sizes))
    settings = [{"optimizer.learning_rate": rate} for rate in (0.01, 0.02)]
    compare(tiny.make(name), optimizers.SGD(), mesh, settings, (0, 1), microbatches=microbatches)


def test_a_stack_on_a_mesh_has_the_shardings_of_its_runs():
    mesh = parallel.make_mesh(parallel.MeshConfig(2, 4))
    program = build(tiny.make("causal_lm"), optimizers.SGD(), mesh, ["optimizer.learning_rate"])
    stacking = Stacking(program, True, True)
    with parallel.mesh_context(mesh):
        stack = stacking.empty(3)
        taken = stacking.take(stack, 1)
    for leaf, target in zip(jax.tree.leaves(stack), jax.tree.leaves(stacking.target(3)), strict=True):
        assert leaf.sharding.is_equivalent_to(target.sharding, leaf.ndim)
    alone = program.target().replace(hyper={})
    for leaf, target in zip(jax.tree.leaves(taken), jax.tree.leaves(alone), strict=True):
        assert leaf.shape == target.shape and leaf.sharding.is_equivalent_to(target.sharding, leaf.ndim)
    split = [leaf.sharding.spec for leaf in jax.tree.leaves(stack.params) if any(leaf.sharding.spec)]
    assert split and all(spec[0] is None for spec in split)
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(alone)
    )
    assert state_bytes(stacking) == held + 4, "the learning rate is one more number"
