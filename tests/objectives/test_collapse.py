"""DINO without centring and SwAV without Sinkhorn collapse: every image gets the same output. With them they don't."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
import tiny

from ssljax import data, objectives
from ssljax.base.durations import Sizes
from ssljax.objectives.base import Ctx, stream
from ssljax.train import optimizers
from ssljax.train.optimization import Optimization
from ssljax.train.state import abstract_variables, make_init
from ssljax.train.step import make_train_step

STEPS = 150
MODEL = {"name": "vit", "size": None, "width": 32, "depth": 1, "heads": 2, "patch_size": 4, "pool": "mean"}
AUGMENT = {"name": "multi_crop", "local_crops": 0, "global_scale": (0.5, 1.0), "augment": {"flip": 0.0, "blur": 0.0}}
K = 16


def information(p_NxK):
    """Nats that the output tells about the image: entropy of the mean minus mean of the entropies; 0 = collapsed."""
    entropy = lambda p: -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30)), 0), -1)  # noqa: E731
    return float(entropy(p_NxK.mean(0)) - entropy(p_NxK).mean())


def trained(objective_keys):
    """(objective, state, inputs, ctx) after a short training on handwritten digits."""
    config = data.DataConfig(source="builtin:digits")
    dataset = data.open_data(config, 128, 0)
    objective = objectives.create({"model": MODEL, "objective": objective_keys}, dataset.spec, STEPS)
    batch = {k: v for k, v in dataset.batch(0).items() if k != "id"}
    shapes, axes = abstract_variables(objective, batch)
    sizes = Sizes(128, dataset.spec.size, None, STEPS)
    rule = optimizers.REGISTRY.get("adamw")(learning_rate=3e-3)
    optimization = Optimization(rule, lambda step: 1.0, sizes, axes.params, shapes.params)
    state = jax.jit(make_init(objective, optimization, batch, ema=False))(0)
    step = jax.jit(make_train_step(objective, optimization))
    for i in range(STEPS):
        batch = {k: v for k, v in dataset.batch(i).items() if k != "id"}
        state, _ = step(state.replace(meters={}), batch)
    inputs = objective.views(stream(0, 0, "views"), objective.prepare(batch), state.step)
    ctx = Ctx(stream(0, 0, "encode"), state.step, jnp.arange(128, dtype=jnp.int32), train=False)
    return objective, state, inputs, ctx


def dino_information(**keys):
    head = {"hidden": 64, "bottleneck": 16, "prototypes": K}
    base = {"name": "dino", "head": head, "augment": AUGMENT, "momentum": 0.9, "teacher_warmup": 0.0}
    objective, state, inputs, ctx = trained({**base, **keys})
    out = objective.encode(state.params, state.extra, inputs, ctx)["teacher"][:, 0]
    center = state.extra["center"] if objective.centering is not None else 0.0
    return information(jax.nn.softmax((out - center) / objective.teacher_temperature))


def swav_information(**keys):
    base = {"name": "swav", "prototypes": K, "projector": {"hidden": 64, "output": 16}, "augment": AUGMENT}
    objective, state, inputs, ctx = trained({**base, **keys})
    outputs = objective.encode(state.params, state.extra, inputs, ctx)
    seen = []

    # The assignments as the loss makes them, caught on their way.
    class Spy(type(objective)):
        def _assign(self, scores, extra, crop, score):
            seen.append(super()._assign(scores, extra, crop, score))
            return seen[-1]

    spy = Spy(**{f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)})
    spy.loss(state.params, state.extra, outputs, inputs, ctx)
    return information(seen[0])


@pytest.mark.parametrize(
    ("measure", "removed"),
    [(dino_information, {"centering": None}), (swav_information, {"sinkhorn_iterations": 0})],
    ids=["dino without centring", "swav without Sinkhorn"],
)
def test_collapses_without_it_and_not_with_it(measure, removed):
    whole, collapsed = measure(), measure(**removed)
    assert whole > 0.25 * math.log(K), f"{whole:.3f} of at most {math.log(K):.3f} nats"
    assert collapsed < 0.1 * whole, f"{collapsed:.3f} against {whole:.3f} nats"


def test_the_smallest_configs_cover_the_registry():
    assert set(tiny.CONFIGS) == set(objectives.REGISTRY)
