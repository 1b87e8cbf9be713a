"""The learned scale of CLIP and SigLIP stays within its bound in every kind of run, and comes back from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import daily, on_day

from ssljax import parallel
from ssljax.base.durations import RunLengths
from ssljax.objectives.contrastive.clip import CLIP
from ssljax.train import optimizers
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program

BOUND = 12.0  # below the initial scale 1 / 0.07
TURN = 50


class Pushed(CLIP):
    """The scale alone is trained: it rises for `TURN` steps and falls afterwards."""

    def loss(self, params, extra, outputs, inputs, ctx):
        made = super().loss(params, extra, outputs, inputs, ctx)
        sign = jnp.where(ctx.step < TURN, -1.0, 1.0)
        return made._replace(terms={"push": (1.0, sign * params["log_scale"], jnp.float32(1))})


def program_of(objective, mesh=(1, 1, 1), microbatches=1, ema=None, **rule):
    devices = jax.devices()[: int(np.prod(mesh))]
    rule = optimizers.AdamW(**{"learning_rate": 0.1, "weight_decay": 0.0, **rule})
    optimization = Optimization(rule, lambda step: 1.0, RunLengths(tiny.BATCH, 1000, tiny.LENGTH, tiny.STEPS))
    placed = parallel.make_mesh(parallel.MeshConfig(*mesh), devices)
    return Program.build(objective, optimization, placed, tiny.batch(), microbatches, ema)


def run(program, steps, change=lambda state: state):
    """The states after each step."""
    states = []
    with parallel.mesh_context(program.mesh):
        state, step = change(program.jitted_init()(0)), program.jitted_step()
        for i in range(steps):
            state, metrics = step(state, program.put(tiny.batch(i)))
            states.append((jax.device_get(state), metrics))
    return states


def pushed(**model):
    objective = tiny.make("clip", **model)
    fields = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
    return Pushed(**{**fields, "max_scale": BOUND})


def test_the_scale_comes_back_as_soon_as_the_gradient_turns():
    """A parameter that drifts beyond the bound comes back after as many steps as it drifted."""
    scales = np.exp([float(state.params["log_scale"]) for state, _ in run(program_of(pushed()), TURN + 30)])
    assert (scales[:TURN] <= BOUND * (1 + 1e-6)).all()
    np.testing.assert_allclose(scales[TURN - 1], BOUND, rtol=1e-6)
    back = int(np.argmax(scales[TURN:] < 0.99 * BOUND))
    assert 0 < back <= 12, "Adam's momentum alone delays the return"


VARIANTS = {
    "average": ({"ema": 0.5}, "float32"),
    "mesh and slices": ({"mesh": (2, 2, 2), "microbatches": 2}, "float32"),
    "loss scale": ({"ema": 0.5, "microbatches": 2}, "float16"),
}


@pytest.mark.parametrize("variant", daily(VARIANTS, 5))
def test_the_parameter_is_within_the_bound_in_every_kind_of_run(variant):
    options, dtype = VARIANTS[variant]
    towers = tiny.config("clip")["model"]
    halves = {name: {**towers[name], "dtype": dtype} for name in ("image", "text")}
    for state, metrics in run(program_of(pushed(**halves), **options), 3):
        np.testing.assert_allclose(np.exp(state.params["log_scale"]), BOUND, rtol=1e-6)
        assert float(metrics["logit_scale"]) <= BOUND * (1 + 1e-6)
        if state.ema is not None:
            np.testing.assert_allclose(np.exp(state.ema["log_scale"]), BOUND, rtol=1e-6)
        assert (state.loss_scale is not None) == (dtype == "float16")


@on_day(3, 4)
def test_a_frozen_scale_stays_and_is_clipped_in_the_loss():
    """Loaded weights may be beyond the bound; frozen means bitwise unchanged, in the average too."""
    beyond = np.float32(np.log(50.0))

    def change(state):
        loaded = {**state.params, "log_scale": jnp.asarray(beyond)}
        return state.replace(params=loaded, ema=jax.tree.map(jnp.copy, loaded))

    program = program_of(pushed(), ema=0.9, lr_multipliers=(("log_scale", 0.0),))
    for state, metrics in run(program, 2, change):
        assert state.params["log_scale"] == beyond and state.ema["log_scale"] == beyond
        np.testing.assert_allclose(metrics["logit_scale"], BOUND, rtol=1e-6)
    later = run(program_of(pushed(), ema=0.9, freeze=(("log_scale", 2),)), 3, change)
    assert [float(np.exp(s.params["log_scale"])) < 49 for s, _ in later] == [False, False, True]
    np.testing.assert_allclose(np.exp(later[-1][0].ema["log_scale"]), BOUND, rtol=1e-6)


@pytest.mark.full
def test_the_bound_of_each_copy_of_a_sweep():
    program = program_of(tiny.make("clip"))
    bounds = (5.0, 9.0)
    states = [program.init(0).replace(hyper={"objective.max_scale": jnp.float32(b)}) for b in bounds]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    stacked, _ = jax.jit(jax.vmap(program.step, in_axes=(0, None)))(stacked, tiny.batch())
    np.testing.assert_allclose(np.exp(stacked.params["log_scale"]), bounds, rtol=1e-6)


def test_siglip_has_the_bound_too():
    keys = {"preset": None, "width": 32, "depth": 2, "heads": 4}
    objective = tiny.make("clip", name="siglip", temperature=0.02, image={**keys, "patch_size": 4}, text=keys)
    program = program_of(dataclasses.replace(objective, max_scale=BOUND))
    with parallel.mesh_context(program.mesh):
        state = program.jitted_init()(0)
    np.testing.assert_allclose(np.exp(state.params["log_scale"]), BOUND, rtol=1e-6)
    assert state.params["logit_bias"] == -10
