"""DINO collapses without centring, SwAV without Sinkhorn: all images get the same output. With them neither does."""

import math

import jax
import jax.numpy as jnp
import pytest
import tiny_objectives as tiny
from daily import daily

from ssljax import data, losses, objectives, parallel
from ssljax.base.durations import RunLengths
from ssljax.objectives.base import apply
from ssljax.train import optimizers
from ssljax.train.optimization import Optimization
from ssljax.train.program import Program

STEPS, BATCH, K = 400, 64, 16
MODEL = {"name": "vit", "preset": None, "width": 32, "depth": 1, "heads": 2, "patch_size": 4, "pool": "mean"}
OFF = {"flip": 0, "jitter": 0, "gray": 0, "blur": 0}
AUGMENT = {"name": "multi_crop", "local_crops": 0, "global_scale": (0.6, 1.0), "augment": OFF, "second": None}
DINO = {
    "name": "dino",
    "head": {"hidden": 64, "bottleneck": 16, "prototypes": K},
    "augment": AUGMENT,
    # For a short run: teacher and centre follow quickly. Targets are so sharp that the other collapse (to the uniform
    # distribution) does not occur.
    "momentum": 0.98,
    "centering": 0.5,
    "teacher_temperature": 0.02,
    "teacher_warmup": 0.0,
}
SWAV = {"name": "swav", "prototypes": K, "projector": {"hidden": 64, "output": 16}, "augment": AUGMENT}
# Most of the time is compilation, and the programs are small.
jit = lambda f: jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})  # noqa: E731


def logits(objective, params, images):
    """The student's logits [B, K] of whole images, without centring or balancing."""
    views = images[:, None]
    if "head" in params:  # DINO
        return objective._project(params, views, None)[:, 0] / objective.student_temperature
    pooled = objective.encode_images(params["encoder"], views, None)
    z = apply(objective.projector.module(), params["projector"], pooled)[:, 0]
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    return apply(objective._prototypes(), params["prototypes"], z) / objective.temperature


def measure(keys, removed, learning_rate):
    """(information, entropy) untrained, trained, and with `removed` half way of the same run, as shares of log K.

    Information is the mutual information of image and prototype: the entropy of the mean distribution less the mean
    entropy.
    """
    dataset = data.open_data(data.DataConfig(source="builtin:digits"), BATCH, 0)
    batch = lambda i: {k: v for k, v in dataset.batch(i).items() if k != "id"}  # noqa: E731
    whole, ablated = (
        objectives.create({"model": MODEL, "objective": {**keys, **more}}, dataset.spec, STEPS)
        for more in ({}, removed)
    )
    lengths = RunLengths(BATCH, dataset.spec.size, None, STEPS)
    rule = optimizers.REGISTRY.get("adamw")(learning_rate=learning_rate)
    optimization = Optimization(rule, lambda step: 1.0, lengths)
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    programs = [Program.build(objective, optimization, mesh, batch(0)) for objective in (whole, ablated)]
    images = whole.prepare(batch(0))["image"]

    @jit
    def shares(params):
        p = jax.nn.softmax(logits(whole, params, images))
        entropy = jnp.mean(losses.entropy(p))
        return (losses.entropy(jnp.mean(p, 0)) - entropy) / math.log(K), entropy / math.log(K)

    start = jit(programs[0].init)(0)
    found = [shares(start.params)]
    for program, end in zip(programs, (STEPS, STEPS // 2)):  # collapse is early, so half of the run suffices
        state, step = start, jit(program.step)
        for i in range(end):
            state, _ = step(state, batch(i))
        found.append(shares(state.params))
    return [tuple(map(float, pair)) for pair in found]


@pytest.mark.parametrize(
    ("keys", "removed", "learning_rate"),
    daily([(DINO, {"centering": None}, 2e-3), (SWAV, {"sinkhorn_iterations": 0}, 3e-3)], 6),
    ids=["dino without centring", "swav without Sinkhorn"],
)
def test_collapse_with_and_without_the_remedy(keys, removed, learning_rate):
    untrained, whole, collapsed = measure(keys, removed, learning_rate)
    assert whole[0] > 0.25 and whole[0] > 1.3 * untrained[0]
    # One prototype for all images: zero information and zero entropy.
    assert collapsed[0] < 0.02 and collapsed[1] < 0.1


def test_the_smallest_configs_cover_the_registry():
    assert set(tiny.CONFIGS) == set(objectives.REGISTRY)
