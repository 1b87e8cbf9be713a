"""Objectives with a contrastive loss: every form of the loss, on one device and on a mesh, gives one result."""

import dataclasses
import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import daily

from ssljax import parallel
from ssljax.base.errors import UserError
from ssljax.objectives.base import Ctx, total
from ssljax.objectives.contrastive import matching as contrastive

NAMES = ("simclr", "clip", "siglip")
RNG = np.random.default_rng(0)


def made(name):
    """(objective, its learned numbers, outputs of its towers), without running a tower."""
    objective = tiny.make(name)
    vectors = lambda *shape: jnp.asarray(RNG.normal(size=(tiny.BATCH, *shape)), jnp.float32)  # noqa: E731
    if name != "simclr":
        params = {"log_scale": jnp.float32(1.2), "logit_bias": jnp.float32(-2.0)}
        return objective, params, {"image": vectors(32), "text": vectors(32)}
    shapes = jax.eval_shape(objective.init, jax.random.key(0), tiny.batch())
    params = jax.tree.map(lambda x: jnp.asarray(RNG.normal(0, 0.2, x.shape), x.dtype), parallel.unboxed(shapes.params))
    return objective, {"projector": params["projector"]}, {"student": vectors(2, 32)}


def measured(objective, params, outputs, mesh=None):
    """Metrics, and gradients with respect to parameters and outputs; on a mesh of 8 devices with every axis used."""
    ctx = Ctx(jax.random.key(0), jnp.int32(0), jnp.arange(tiny.BATCH))

    def value(params, outputs):
        loss = objective.loss(params, {}, outputs, {}, ctx)
        return total(loss.terms), loss

    run = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))
    if mesh is None:
        return run(params, outputs)
    mesh = parallel.make_mesh(parallel.MeshConfig(*mesh))
    with parallel.mesh_context(mesh):
        return run(params, jax.device_put(outputs, parallel.batch_sharding(mesh)))


def close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=3e-6 * float(jnp.abs(e).max()))


@functools.cache
def dense(name):
    objective, *arrays = made(name)
    return measured(dataclasses.replace(objective, form="dense"), *arrays), arrays


@pytest.mark.parametrize(
    ("name", "form"),
    daily([(name, form) for form in ("chunked", "ring", "dense") for name in NAMES], 3),
)
def test_forms_agree_on_a_mesh_with_fsdp_and_tensor(name, form):
    expected, arrays = dense(name)
    assert 0 <= float(expected[0][1].metrics["accuracy"][0]) < tiny.BATCH
    close(measured(dataclasses.replace(tiny.make(name), form=form), *arrays, mesh=(2, 2, 2)), expected)


def test_auto_chooses_by_the_size_of_the_batch(monkeypatch):
    objective, *arrays = made("clip")
    monkeypatch.setattr(contrastive, "DENSE", 8)
    chosen = []

    def loss(first, second, *, form, **keywords):
        chosen.append(form)
        return jnp.zeros(len(first)), jnp.ones(len(first)), jnp.zeros(len(first))

    for limit in (tiny.BATCH, tiny.BATCH - 1):
        monkeypatch.setattr(contrastive, "CHUNKED", limit)
        for form in ("auto", "dense"):
            ctx = Ctx(jax.random.key(0), jnp.int32(0), jnp.arange(tiny.BATCH))
            image = arrays[1]["image"]
            dataclasses.replace(objective, form=form).match(loss, image, image, {}, ctx)
    assert chosen == ["chunked", "dense", "ring", "dense"]


@pytest.fixture
def script(monkeypatch):
    """The module benchmarks/contrastive.py."""
    path = pathlib.Path(__file__).parents[2] / "benchmarks/contrastive.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("contrastive_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "form", "limit"), [("clip", "ring", 0.2e9), ("nt_xent", "chunked", 0.4e9)])
def test_memory_of_a_large_batch(script, name, form, limit):
    """Temporaries of one of 8 devices for the loss of 65,536 examples of width 512, forward and backward."""
    mesh = parallel.make_mesh(parallel.MeshConfig())
    program = script.traced(name, form, mesh, 65_536)
    assert 0 < script.temporaries(program, mesh) <= limit


@pytest.mark.parametrize("name", ["nt_xent", "clip"])
def test_communication_beside_the_least(script, name):
    """The chunked form sends the least, and some numbers per row; the ring sends the vectors once more."""
    mesh, batch = parallel.make_mesh(parallel.MeshConfig()), 1024
    least = script.least_sent(name, 8, batch)
    chunked, ring = (script.sent(script.traced(name, form, mesh, batch).jaxpr.jaxpr) for form in ("chunked", "ring"))
    vectors = script.least_sent("nt_xent", 8, batch) // (1 if name == "nt_xent" else 2)
    assert least < chunked < 1.02 * least
    # gradients of columns take one hop more, back to their device
    home = 0 if name == "nt_xent" else vectors / 7
    assert least + vectors + home < ring < 1.02 * (least + vectors + home)


def test_the_sigmoid_loss_needs_a_bias():
    with pytest.raises(UserError, match=r"model\.name: got 'clip', must be 'siglip'"):
        tiny.make("siglip", **tiny.config("clip")["model"])
