"""The gradient noise scale against its definition: squared norms of gradients, and a model whose noise is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, parallel
from ssljax.objectives.base import Ctx, Loss, Objective, Variables
from ssljax.train import noise_scale
from ssljax.train.microbatch import Parts
from ssljax.train.step import means

ROW = jnp.arange(tiny.BATCH, dtype=jnp.int32)
CTX = Ctx(jax.random.key(0), jnp.int32(0), ROW)


@dataclasses.dataclass(frozen=True)
class Linear(Objective):
    """The loss mean(weight * x . w), in which the gradient of an example is x."""

    def prepare(self, batch):
        return batch

    def init(self, key, batch):
        return Variables({"w": jnp.ones(3)}, {})

    def views(self, keys, batch, step):
        return batch

    def encode(self, params, extra, inputs, ctx):
        return inputs["x"] @ params["w"]

    def loss(self, params, extra, outputs, inputs, ctx):
        return Loss({"linear": (1.0, jnp.sum(outputs * inputs["weight"]), jnp.sum(inputs["weight"]))})


def batch_of(seed, rows=16, mean=0.5):
    rng = np.random.default_rng(seed)
    x = mean + rng.normal(size=(rows, 3)) * [1.0, 2.0, 3.0]
    return {"x": jnp.asarray(x, jnp.float32), "weight": jnp.asarray(rng.integers(1, 5, rows), jnp.float32)}


def parts_of(batch, groups):
    """The mean over groups of rows of |count * share of the gradient|^2, from the definition, in float64."""
    x, weight = np.float64(batch["x"]), np.float64(batch["weight"])
    shares = [(x * weight[:, None])[group].sum(0) / weight.sum() for group in groups]
    return np.mean([np.sum((len(groups) * share) ** 2) for share in shares])


@pytest.mark.parametrize("slices", [2, 4])
def test_parts_are_slices(slices):
    batch = batch_of(0)
    found = tiny.gradients(Linear(), {"w": jnp.ones(3)}, {}, batch, CTX, slices).parts
    want = parts_of(batch, [np.arange(16) % slices == i for i in range(slices)])
    assert found.number == slices and float(found.square) == pytest.approx(want, rel=1e-5)


def test_on_a_mesh_parts_are_rows_of_a_slice_on_a_device():
    """Each of two devices has eight rows of the batch, in order, and of them every second one in a slice."""
    objective, batch = Linear(), batch_of(0)
    mesh = parallel.make_mesh(parallel.MeshConfig(data=2), jax.devices()[:2])
    with parallel.mesh_context(mesh):
        placed = parallel.put_batch(jax.tree.map(np.asarray, batch), mesh)
        run = jax.jit(
            lambda batch: tiny.gradients(objective, {"w": jnp.ones(3)}, {}, batch, CTX, 2, axes=("data",)).parts.square
        )
        found = run(placed)
    row = np.arange(16)
    want = parts_of(batch, [(row % 2 == slice) & (row // 8 == device) for slice in range(2) for device in range(2)])
    assert float(found) == pytest.approx(want, rel=1e-5)


def test_the_estimate_of_many_steps_is_the_noise_scale():
    """Gradients with mean 0.5 (1, 1, 1) and variances (1, 4, 9): B = 14 / 0.75. 4,000 batches leave some per cent."""

    def one(seed):
        x = 0.5 + jax.random.normal(jax.random.key(seed), (16, 3)) * jnp.array([1.0, 2.0, 3.0])
        batch = {"x": x, "weight": jnp.ones(16)}
        made = tiny.gradients(Linear(), {"w": jnp.ones(3)}, {}, batch, CTX, 4)
        return noise_scale.meter(made.parts, 16, jnp.linalg.norm(made.grads["w"]))

    noise, signal = jax.jit(jax.vmap(one))(jnp.arange(4000))
    assert float(noise.mean()) == pytest.approx(14, rel=0.03)
    assert float(signal.mean()) == pytest.approx(0.75, rel=0.1)
    assert float(noise.sum() / signal.sum()) == pytest.approx(14 / 0.75, rel=0.1)


def test_the_loss_scale_cancels():
    objective, batch = Linear(), batch_of(1)
    plain, scaled = (
        tiny.gradients(objective, {"w": jnp.ones(3)}, {}, batch, CTX, 2, scale).parts.square for scale in (None, 1024.0)
    )
    assert float(scaled) == pytest.approx(float(plain), rel=1e-6)


def test_without_parts_there_is_no_estimate():
    meters = {"noise": noise_scale.meter(None, 16, jnp.float32(1))}
    assert np.isnan(means(meters)["noise"])
    noise, signal = noise_scale.meter(Parts(2, jnp.float32(1.0)), 16, jnp.float32(2.0))
    assert signal > 0 > noise, "more signal than the parts have: noise by chance below zero"


@pytest.mark.parametrize("name", objectives.REGISTRY)
def test_every_objective_measures_it_or_says_why_not(name):
    objective = tiny.make(name)
    assert (noise_scale.missing(objective, 4) is None) == (not objective.coupled)
    assert "microbatches" in (noise_scale.missing(objective, 1) or "") or objective.coupled
