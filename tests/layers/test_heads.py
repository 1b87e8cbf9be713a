"""Heads: batch statistics with weights, DINO's fixed-norm last layer, prototypes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.layers.heads import BatchNorm, DINOHead, Linear, MLPHead, Prototypes

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(2.0, 3.0, size=(12, 6)), jnp.float32)
WEIGHTS = jnp.array([1.0] * 8 + [0.0] * 4)


def make(module, *inputs):
    params = nn.unbox(module.init(jax.random.key(0), *inputs))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: a + jnp.asarray(0.2 * rng.normal(size=a.shape), jnp.float32), params)
    return params, jax.jit(module.apply)


@pytest.mark.parametrize(
    "head", [MLPHead((512, 128)), DINOHead(300, 256, 64), Prototypes(200)], ids=lambda m: type(m).__name__
)
def test_flops_equal_the_count_of_the_compiler(head):
    x = jnp.zeros((1024, 256))
    params = jax.eval_shape(lambda: nn.unbox(head.init(jax.random.key(0), x)))
    counted = jax.jit(head.apply).lower(params, x).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(1024 * head.flops(256), rel=0.12)  # the compiler also counts activations and norms


def test_batch_norm_equals_its_definition():
    params, apply = make(BatchNorm(), X)
    x, p = np.asarray(X, np.float64), params["params"]
    want = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * p["scale"] + p["bias"]
    np.testing.assert_allclose(apply(params, X), want, rtol=1e-4, atol=1e-4)
    views = X.reshape(4, 3, 6)  # [B, V, D]: statistics are over all leading axes
    np.testing.assert_allclose(apply(params, views).reshape(12, 6), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 6), (12, 2, 6)])
def test_rows_of_weight_zero_change_nothing(shape):
    x = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    head = MLPHead((5, 4), final_norm=True)
    params, apply = make(head, x)
    garbage = x.at[8:].set(1e3)
    want = apply(params, x[:8])
    np.testing.assert_allclose(apply(params, garbage, WEIGHTS)[:8], want, rtol=1e-4, atol=1e-5)
    loss = jax.jit(jax.grad(lambda p, x, w: jnp.sum(jnp.sin(head.apply(p, x, w)[:8]))))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        loss(params, garbage, WEIGHTS),
        loss(params, x[:8], None),
    )
    assert np.isfinite(apply(params, x, jnp.zeros(12))).all()


def test_the_mlp_head_equals_its_equations():
    params, apply = make(MLPHead((5, 4)), X)
    p, x = params["params"], np.asarray(X, np.float64)
    h = x @ p["linear_0"]["kernel"]
    assert "bias" not in p["linear_0"], "a bias before batch statistics does nothing"
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * p["norm_0"]["scale"] + p["norm_0"]["bias"]
    want = np.maximum(h, 0) @ p["linear_1"]["kernel"] + p["linear_1"]["bias"]
    np.testing.assert_allclose(apply(params, X), want, rtol=1e-4, atol=1e-4)
    assert set(nn.unbox(MLPHead((5, 4), norm=None).init(jax.random.key(0), X))["params"]) == {"linear_0", "linear_1"}


def test_the_dino_head_equals_its_equations():
    from scipy.special import erf

    params, apply = make(DINOHead(prototypes=7, hidden=8, bottleneck=5), X)
    p, h = params["params"], np.asarray(X, np.float64)
    for i in range(3):
        h = h @ p[f"linear_{i}"]["kernel"] + p[f"linear_{i}"]["bias"]
        h = h * (1 + erf(h / np.sqrt(2))) / 2 if i < 2 else h
    w = np.asarray(p["last_layer"]["kernel"], np.float64)
    want = (h / np.linalg.norm(h, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=0))
    np.testing.assert_allclose(apply(params, X), want, rtol=1e-4, atol=1e-5)
    doubled = jax.tree.map(lambda a: a, params)
    doubled["params"]["last_layer"]["kernel"] *= 2
    np.testing.assert_allclose(apply(doubled, X), want, rtol=1e-4, atol=1e-5)


def test_prototypes_are_cosines_and_linear_starts_at_zero():
    params, apply = make(Prototypes(3), X)
    w = params["params"]["kernel"]
    want = [[x @ c / np.linalg.norm(x) / np.linalg.norm(c) for c in np.asarray(w).T] for x in np.asarray(X)]
    np.testing.assert_allclose(apply(params, X), want, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(apply(params, x)))(jnp.zeros((2, 6)))
    assert np.isfinite(gradient).all(), "a zero vector has a finite gradient"
    assert not np.asarray(Linear(4).apply(Linear(4).init(jax.random.key(0), X), X)).any()
