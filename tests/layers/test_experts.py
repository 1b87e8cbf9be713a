"""Experts against a loop over tokens, without and with a limited capacity."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssljax import parallel
from ssljax.layers.experts import Experts, ExpertsConfig, dispatch

RNG = np.random.default_rng(0)
WIDTH, HIDDEN = 6, 10


def module(config, gated=True):
    init = nn.initializers.normal(0.5)
    return Experts(config, HIDDEN, nn.silu, gated, init, init)


def looped(params, config, x, gated=True, slots=None):
    """Experts applied to one token at a time, in float64."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    out = np.zeros_like(x)
    for b in range(len(x)):
        used = np.zeros(config.count, int)
        logits = x[b] @ p["router"]
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        order = np.argsort(-probabilities, axis=-1, kind="stable")[:, : config.top_k]
        for rank in range(config.top_k):  # first choices of all tokens before any second choice
            for t in range(x.shape[1]):
                expert = order[t, rank]
                used[expert] += 1
                if slots is not None and used[expert] > slots:
                    continue
                weight = probabilities[t, expert]
                if config.normalize:
                    weight /= probabilities[t, order[t]].sum()
                h = x[b, t] @ p["in"][expert]
                silu = lambda a: a / (1 + np.exp(-a))  # noqa: E731
                h = silu(x[b, t] @ p["gate"][expert]) * h if gated else silu(h)
                out[b, t] += weight * (h @ p["out"][expert])
    return out


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("top_k", "normalize"), [(1, False), (2, True), (3, False)])
@pytest.mark.parametrize("slots", [None, 2, 5])
def test_a_loop_over_tokens(top_k, normalize, slots, gated):
    config = ExpertsConfig(4, top_k, normalize, slots=slots)
    x = RNG.normal(size=(3, 5, WIDTH))
    experts = module(config, gated)
    params = nn.unbox(experts.init(jax.random.key(1), jnp.asarray(x, jnp.float32)))["params"]
    y, logits = experts.apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, looped(params, config, x, gated, slots), atol=2e-5)
    np.testing.assert_allclose(logits, x @ np.asarray(params["router"], np.float64), atol=1e-5)


def test_a_large_capacity_has_no_effect():
    x = jnp.asarray(RNG.normal(size=(2, 7, WIDTH)), jnp.float32)
    free = ExpertsConfig(4, 2)
    params = module(free).init(jax.random.key(2), x)
    roomy = dataclasses.replace(free, capacity=2.0)  # capacity 2 x 2 x 7 / 4 = 7: no token is dropped

    def value(config, params):
        return jnp.sum(jnp.sin(module(config).apply(params, x)[0]))

    np.testing.assert_allclose(value(free, params), value(roomy, params), rtol=1e-5)
    grads = [jax.tree.leaves(nn.unbox(jax.grad(lambda p, c=c: value(c, p))(params))) for c in (free, roomy)]
    for a, b in zip(*grads):
        np.testing.assert_allclose(a, b, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 10_000))
def test_each_slot_of_an_expert_has_one_token(experts, slots, length, seed):
    rng = np.random.default_rng(seed)
    k = min(2, experts)
    choice = np.stack([[rng.permutation(experts)[:k] for _ in range(length)] for _ in range(2)])
    place = np.asarray(dispatch(jnp.asarray(choice), jnp.ones(choice.shape), experts, slots))
    assert place.shape == (2, length, experts, slots)
    assert (place.sum(axis=1) <= 1).all()  # at most one token a slot
    for b in range(2):
        for e in range(experts):
            asking = [t for rank in range(k) for t in range(length) if choice[b, t, rank] == e]
            assert sorted(np.flatnonzero(place[b, :, e].sum(-1))) == sorted(asking[:slots])


@pytest.mark.parametrize("top_k", [1, 2])
def test_padding_takes_no_slots(top_k):
    """First choices of padding would fill slots before second choices of tokens."""
    x = jnp.asarray(RNG.normal(size=(3, 5, WIDTH)), jnp.float32)
    padded = jnp.concatenate([x, jnp.broadcast_to(x[:, :1], (3, 7, WIDTH))], axis=1)
    experts = module(ExpertsConfig(4, top_k, slots=2))
    params = experts.init(jax.random.key(1), x)
    alone, _ = experts.apply(params, x)
    beside, _ = experts.apply(params, padded, jnp.broadcast_to(jnp.arange(12) < 5, (3, 12)))
    np.testing.assert_allclose(beside[:, :5], alone, atol=1e-5)
    np.testing.assert_array_equal(beside[:, 5:], 0)


MESHES = [(8, 1, 1, 1, 1), (1, 1, 8, 1, 1), (2, 1, 1, 1, 4), (2, 2, 1, 1, 2), (1, 2, 2, 1, 2), (1, 1, 2, 2, 2)]


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_a_mesh_changes_nothing(capacity):
    """Values and gradients, also of the tokens, are equal on a mesh, and the experts are split over its devices."""
    experts = Experts(ExpertsConfig(4, 2, capacity=capacity), 16, nn.silu, True, *[nn.initializers.normal(0.5)] * 2)
    x = jnp.asarray(RNG.normal(size=(8, 6, 8)), jnp.float32)
    boxed = experts.init(jax.random.key(0), x)["params"]
    params = parallel.unboxed(boxed)
    run = jax.jit(jax.value_and_grad(lambda p, x: jnp.sum(jnp.sin(experts.apply({"params": p}, x)[0])), (0, 1)))
    want = run(params, x)
    alone = run.lower(params, x).compile().cost_analysis()["flops"]
    for sizes in MESHES:
        mesh = parallel.make_mesh(parallel.MeshConfig(*sizes))
        places = parallel.shardings(parallel.logical_axes(boxed), params, mesh)
        with parallel.mesh_context(mesh):
            arguments = jax.device_put(params, places), jax.device_put(x, parallel.batch_sharding(mesh))
            program = run.lower(*arguments).compile()
            got = program(*arguments)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max(), err_msg=str(sizes))
        if sizes in ((8, 1, 1, 1, 1), (2, 1, 1, 1, 4)):
            assert program.cost_analysis()["flops"] < alone / 4, sizes
