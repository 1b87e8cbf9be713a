"""GIN against its definition in float64; padding and the order of nodes change nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import models
from ssljax.base.errors import UserError

RNG = np.random.default_rng(0)
NODES, FEATURES = 9, 4
SIZES = (9, 6, 1, 3)


class Spec:
    elements = {"nodes": {"shape": [NODES, FEATURES]}}  # noqa: RUF012


def graphs(nodes=NODES):
    """Random graphs of SIZES nodes, padded to `nodes`; the same for every padding."""
    rng = np.random.default_rng(1)
    x, a = np.zeros((len(SIZES), nodes, FEATURES)), np.zeros((len(SIZES), nodes, nodes), bool)
    for i, n in enumerate(SIZES):
        x[i, :n] = rng.normal(size=(n, FEATURES))
        upper = np.triu(rng.random((n, n)) < 0.4, 1)
        a[i, :n, :n] = upper | upper.T
    return jnp.float32(x), jnp.asarray(a), jnp.arange(nodes) < jnp.asarray(SIZES)[:, None]


def make(**keys):
    """A small model with random parameters, epsilon included."""
    module = models.create({"name": "gin", "width": 5, "depth": 3, **keys}, Spec)
    params = nn.unbox(jax.jit(module.initial)(jax.random.key(0)))["params"]
    return module, jax.tree.map(lambda a: a + jnp.asarray(0.2 * RNG.normal(size=a.shape), jnp.float32), params)


def np_gin(p, c):
    """Tokens [B, N, D] and pooled [B, D]: eq. 4.1 node by node, eq. 4.2."""
    x, a, _ = (np.asarray(array) for array in graphs())
    states = [np.float64(x[i, :n]) for i, n in enumerate(SIZES)]
    layers = [[] for _ in SIZES]
    for k in range(c.depth):
        hidden, mlp = [], p[f"mlp_{k}"]
        for i, n in enumerate(SIZES):
            sums = np.zeros_like(states[i])
            for v in range(n):
                for u in range(n):
                    sums[v] += states[i][u] * a[i, u, v]
            hidden.append(((1 + p[f"epsilon_{k}"]) * states[i] + sums) @ mlp["linear_0"]["kernel"])
            hidden[-1] += mlp["linear_0"].get("bias", 0)
        every = np.concatenate(hidden)
        for i in range(len(SIZES)):
            h = hidden[i]
            if c.norm != "none":
                axis, over, eps = (0, every, 1e-5) if c.norm == "batch" else (-1, h, 1e-6)
                mean, variance = over.mean(axis, keepdims=True), over.var(axis, keepdims=True)
                h = (h - mean) / np.sqrt(variance + eps) * mlp["norm_0"]["scale"] + mlp["norm_0"]["bias"]
            h = np.maximum(h, 0) @ mlp["linear_1"]["kernel"] + mlp["linear_1"]["bias"]
            states[i] = np.maximum(h, 0)
            layers[i].append(states[i])
    tokens = [np.concatenate(found, 1) for found in layers]
    pooled = np.stack([t.sum(0) if c.pool == "sum" else t.mean(0) for t in tokens])
    return np.stack([np.pad(t, ((0, NODES - len(t)), (0, 0))) for t in tokens]), pooled


@pytest.mark.parametrize("keys", [{}, {"norm": "batch", "pool": "mean"}, {"norm": "none"}])
def test_values_and_gradients(keys):
    module, params = make(**keys)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    out = jax.jit(module.apply)({"params": params}, *graphs())
    tokens, pooled = np_gin(exact, module.config)
    assert out.pooled.shape == (len(SIZES), module.width)
    np.testing.assert_allclose(out.tokens, tokens, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out.pooled, pooled, rtol=1e-4, atol=1e-4)
    probe = RNG.normal(size=out.pooled.shape)
    loss = lambda p: jnp.vdot(module.apply({"params": p}, *graphs()).pooled, probe)  # noqa: E731
    grads = jax.jit(jax.grad(loss))(params)
    way = jax.tree.map(lambda a: RNG.normal(size=a.shape), exact)
    ends = [np_gin(jax.tree.map(lambda a, d, s=s: a + s * d, exact, way), module.config)[1] for s in (1e-6, -1e-6)]
    slope = np.vdot((ends[0] - ends[1]) / 2e-6, probe)
    found = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, way))))
    np.testing.assert_allclose(found, slope, rtol=1e-3)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_padding_changes_nothing(norm):
    module, params = make(norm=norm)

    def run(params, arrays):
        return jnp.sum(jnp.sin(module.apply({"params": params}, *arrays).pooled))

    both = [jax.jit(jax.value_and_grad(run))(params, graphs(nodes)) for nodes in (NODES, NODES + 5)]
    for a, b in zip(*map(jax.tree.leaves, both)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    x, a, mask = graphs()
    junk = jnp.where(mask[..., None], x, 7.0)  # features of padding are not read
    np.testing.assert_allclose(run(params, (junk, a, mask)), both[0][0], rtol=1e-5)
    assert not module.apply({"params": params}, junk, a, mask).tokens[~mask].any()
    if norm == "layer":  # a graph does not depend on the others
        alone = [module.apply({"params": params}, *(y[i : i + 1] for y in (x, a, mask))).pooled for i in range(4)]
        together = module.apply({"params": params}, x, a, mask).pooled
        np.testing.assert_allclose(jnp.concatenate(alone), together, rtol=1e-4, atol=1e-5)


def test_the_order_of_nodes_does_not_matter():
    module, params = make()
    x, a, mask = graphs()
    order = RNG.permutation(NODES)  # padding moves between the nodes
    out = module.apply({"params": params}, x, a, mask)
    moved = module.apply({"params": params}, x[:, order], a[:, order][:, :, order], mask[:, order])
    np.testing.assert_allclose(moved.pooled, out.pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved.tokens, out.tokens[:, order], rtol=1e-4, atol=1e-5)


def test_sums_tell_graphs_apart_that_means_do_not():
    """Section 5: with equal features, a mean over nodes does not see the size of a regular graph."""
    a = jnp.asarray(np.stack([ring(3), ring(6)]), bool)
    mask = jnp.arange(NODES) < jnp.array([[3], [6]])
    x = jnp.ones((2, NODES, FEATURES)) * mask[..., None]
    found = {}
    for pool in ("sum", "mean"):
        module, params = make(pool=pool)
        pooled = module.apply({"params": params}, x, a, mask).pooled
        found[pool] = float(jnp.abs(pooled[0] - pooled[1]).max())
    assert found["mean"] < 1e-5 and found["sum"] > 0.1


def ring(n):
    a = np.zeros((NODES, NODES))
    for i in range(n):
        a[i, (i + 1) % n] = a[(i + 1) % n, i] = 1
    return a


def test_flops():
    module, _ = make()
    # Sums over neighbours, then two maps, for 9 nodes; inputs of 4, 5 and 5 numbers.
    assert module.flops() == sum(2 * 9 * 9 * f + 2 * 9 * f * 5 + 2 * 9 * 5 * 5 for f in (4, 5, 5))


def test_data_without_graphs():
    class Other:
        elements = {"image": {"shape": [8, 8, 3]}}  # noqa: RUF012

    with pytest.raises(UserError, match=r"model\.name: this model reads 'nodes', but the data have: image"):
        models.create({"name": "gin"}, Other)
