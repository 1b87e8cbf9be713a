"""ResNet against its definition in float64 and its published parameter counts; refused settings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import models, objectives
from ssljax.base.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 9, 7, 2))
SMALL = {"name": "resnet", "preset": None, "channels": 8, "depths": [1, 2], "groups": 4}


class Spec:
    elements = {"image": {"shape": [9, 7, 2]}}  # noqa: RUF012


def make(**keys):
    """A small model with random parameters, norms included."""
    module = models.create({**SMALL, **keys}, Spec)
    params = nn.unbox(jax.jit(module.initial)(jax.random.key(0)))["params"]
    return module, jax.tree.map(lambda a: a + jnp.asarray(0.2 * RNG.normal(size=a.shape), jnp.float32), params)


def np_conv(x, p, side, stride):
    """Convolution: each output is the patch around its position times the matrix with rows (row, column, channel)."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    rows, columns = range(0, height, stride), range(0, width, stride)
    out = [[padded[:, r : r + side, c : c + side].reshape(len(x), -1) @ p["kernel"] for c in columns] for r in rows]
    return np.asarray(out).transpose(2, 0, 1, 3)


def np_norm(x, p, c):
    if c.norm == "batch":
        y = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    else:
        y = np.empty_like(x)
        for i in np.ndindex(len(x), c.groups):
            part = (i[0], slice(None), slice(None), slice(i[1] * (n := x.shape[-1] // c.groups), (i[1] + 1) * n))
            y[part] = (x[part] - x[part].mean()) / np.sqrt(x[part].var() + 1e-5)
    return y * p["scale"] + p["bias"]


def np_resnet(p, x, c):
    x = np.maximum(np_norm(np_conv(x, p["stem"], *((7, 2) if c.stem == "large" else (3, 1))), p["norm"], c), 0)
    if c.stem == "large":
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        places = [
            [padded[:, r : r + 3, k : k + 3].max((1, 2)) for k in range(0, x.shape[2], 2)]
            for r in range(0, x.shape[1], 2)
        ]
        x = np.asarray(places).transpose(2, 0, 1, 3)
    strides = [1, 2, 1]  # the first block of the second stage halves the sides
    for i, stride in enumerate(strides):
        b, y = p[f"block_{i}"], x
        sides = [(1, 1), (3, stride), (1, 1)] if c.bottleneck else [(3, stride), (3, 1)]
        for j, (side, step) in enumerate(sides):
            y = np_norm(np_conv(np.maximum(y, 0) if j else y, b[f"conv_{j}"], side, step), b[f"norm_{j}"], c)
        if "shortcut" in b:
            x = np_norm(np_conv(x, b["shortcut"], 1, stride), b["norm"], c)
        x = np.maximum(x + y, 0)
    return x


@pytest.mark.parametrize("keys", [{}, {"bottleneck": True, "stem": "small"}, {"norm": "batch"}])
def test_values_and_gradients(keys):
    module, params = make(**keys)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    want = np_resnet(exact, IMAGES, module.config)
    out = jax.jit(module.apply)({"params": params}, jnp.float32(IMAGES))
    assert out.tokens.shape == (3, want.shape[1] * want.shape[2], module.width) and module.width == want.shape[3]
    np.testing.assert_allclose(out.tokens, want.reshape(out.tokens.shape), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out.pooled, want.mean((1, 2)), rtol=1e-4, atol=1e-4)
    probe = RNG.normal(size=out.pooled.shape)
    grads = jax.jit(jax.grad(lambda p: jnp.vdot(module.apply({"params": p}, jnp.float32(IMAGES)).pooled, probe)))(
        params
    )
    way = jax.tree.map(lambda a: RNG.normal(size=a.shape), exact)
    ends = [
        np_resnet(jax.tree.map(lambda a, d, s=s: a + s * d, exact, way), IMAGES, module.config) for s in (1e-6, -1e-6)
    ]
    slope = np.vdot((ends[0] - ends[1]).mean((1, 2)) / 2e-6, probe)
    got = sum(np.vdot(np.asarray(g, np.float64), d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(way)))
    np.testing.assert_allclose(got, slope, rtol=1e-3, atol=1e-3)


def test_examples_are_independent_under_group_norm_but_not_under_batch_norm():
    images = jnp.float32(IMAGES)
    for norm, same in (("group", True), ("batch", False)):
        module, params = make(norm=norm)
        run = jax.jit(lambda x, m=module, p=params: m.apply({"params": p}, x).pooled)
        assert np.allclose(run(images)[:1], run(images[:1]), atol=1e-5) == same


def test_flops_equal_the_count_of_the_compiler():
    for keys in ({}, {"bottleneck": True, "stem": "small"}):
        module = models.create({**SMALL, "channels": 32, **keys}, Spec)
        params = nn.unbox(jax.eval_shape(lambda m=module: m.initial(jax.random.key(0))))
        run = jax.jit(lambda p, x, m=module: m.apply(p, x).pooled)
        counted = run.lower(params, jnp.zeros((1, 128, 128, 2))).compile().cost_analysis()["flops"]
        # The compiler leaves out the products with padding.
        assert counted == pytest.approx(module.flops((128, 128, 2)), rel=0.06)


def test_errors_name_the_key():
    with pytest.raises(UserError, match=r"model.preset: unknown preset '51'.*known: micro, 18"):
        models.create({"name": "resnet", "preset": "51"}, Spec)
    with pytest.raises(UserError, match=r"model.depths: missing"):
        models.create({"name": "resnet", "preset": None}, Spec)
    with pytest.raises(UserError, match=r"model.groups: 5 does not divide the 8 channels"):
        models.create({**SMALL, "groups": 5}, Spec)
    with pytest.raises(UserError, match=r"model.name: this model has no patches that could be masked"):
        groups = tiny.config("mae")
        objectives.create({**groups, "model": SMALL}, tiny.SPEC)
