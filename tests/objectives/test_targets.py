"""Regression, several labels, and autoencoders by their definitions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives
from ssljax.base.errors import UserError
from ssljax.objectives.base import apply, still, views_of
from ssljax.views import Single, resize, unnormalize

KEY = jax.random.key(4)


def made(name, **settings):
    objective = dataclasses.replace(tiny.make(name).unwrapped, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)  # heads begin as zeros
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), params)
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    ctx = still(KEY, batch)
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    terms = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx)
    return objective, params, batch, inputs, outputs, terms


def linear(params, x):
    """A linear map, whose parameters are a matrix and a vector."""
    bias, kernel = sorted(jax.tree.leaves(params), key=lambda leaf: leaf.ndim)
    return x @ kernel + bias


def term(found, name):
    _, total, weight = found.terms[name]
    return float(total / weight)


@pytest.mark.parametrize("error", ["mse", "mae", "huber", "gaussian"])
def test_regression(error):
    settings = {"error": error, "delta": 0.5, "target_mean": 0.3, "target_std": 1.7}
    objective, params, batch, _, outputs, found = made("regression", **settings)
    pooled = apply(objective.model, params["encoder"], objective.pixels(batch["image"])).pooled
    outputs = np.asarray(linear(params["head"], pooled), np.float64)
    target = (np.asarray(batch["target"], np.float64) - 0.3) / 1.7
    mean = outputs[:, :2]
    e = np.abs(mean - target)
    value = {
        "mse": (e**2).mean(1),
        "mae": e.mean(1),
        "huber": np.where(e <= 0.5, e**2 / 2, 0.5 * (e - 0.25)).mean(1),
        "gaussian": ((outputs[:, 2:] + e**2 / np.exp(outputs[:, 2:])) / 2).sum(1) if error == "gaussian" else None,
    }[error]
    np.testing.assert_allclose(term(found, error), value.mean(), rtol=1e-4)
    wrong, count = found.metrics["absolute_error"]
    np.testing.assert_allclose(wrong / count, 1.7 * e.mean(), rtol=1e-4)


def test_multi_label():
    _, _, batch, _, outputs, found = made("multi_label")
    p, tags = 1 / (1 + np.exp(-np.asarray(outputs, np.float64))), np.asarray(batch["tags"])
    value = -(tags * np.log(p) + (1 - tags) * np.log(1 - p)).mean()
    np.testing.assert_allclose(term(found, "binary_cross_entropy"), value, rtol=1e-5)
    right, count = found.metrics["accuracy"]
    np.testing.assert_allclose(right / count, ((p > 0.5) == tags).mean(), rtol=1e-6)


def test_columns_that_do_not_fit():
    groups = tiny.config("regression")
    with pytest.raises(
        UserError, match=r"objective\.column: the data have no column 'price' \(they have: .*image, label"
    ):
        objectives.create({**groups, "objective": {**groups["objective"], "column": "price"}}, tiny.SPEC)
    with pytest.raises(UserError, match=r"objective\.column: 'image' has the shape \[8, 8, 3\]"):
        objectives.create({**groups, "objective": {**groups["objective"], "column": "image"}}, tiny.SPEC)


def test_a_tag_that_is_none_gives_nan():
    objective, params, batch, inputs, outputs, _ = made("multi_label")
    wrong = {**inputs, "target": inputs["target"].at[3, 1].set(2.0)}
    assert np.isnan(objective.loss(params, {}, outputs, wrong, still(KEY, batch)).terms["binary_cross_entropy"][1])


def decoded(params, code):
    """Pixels of codes, by the maps of the decoder."""
    return linear(params["linear_1"], nn.gelu(linear(params["linear_0"], code)))


def code_of(objective, params, images):
    """The map of the features of all places."""
    tokens = apply(objective.model, params["encoder"], objective.pixels(images)).tokens
    return linear(params["code"]["linear_0"], tokens.reshape(len(images), -1))


@pytest.mark.parametrize("noise", [None, "gaussian", "masking", "salt_and_pepper"])
def test_autoencoder(noise):
    objective, params, batch, inputs, _, found = made("autoencoder", noise=noise, noise_level=0.3)
    code = code_of(objective, params, inputs["image"])
    target = objective.pixels(batch["image"]).reshape(tiny.BATCH, -1)
    np.testing.assert_allclose(term(found, "mse"), np.mean((decoded(params["decoder"], code) - target) ** 2), rtol=1e-4)
    np.testing.assert_allclose(inputs["target"], batch["image"], atol=1e-6)
    changed = np.abs(inputs["image"] - batch["image"]) > 1e-6
    if noise is None:
        assert not changed.any()
    elif noise == "gaussian":
        assert changed.mean() > 0.8
    else:
        fate = changed.any(-1)  # of a pixel; one that had the value already is not changed
        assert 0.2 < fate.mean() < 0.4
        values = set(np.unique(np.asarray(inputs["image"])[fate]))
        assert values == ({0.0} if noise == "masking" else {0.0, 1.0})


def test_gaussian_noise_has_its_size():
    objective = dataclasses.replace(tiny.make("autoencoder").unwrapped, noise="gaussian", noise_level=0.05)
    image = jnp.full((400, 8, 8, 3), 0.5)
    made = objective.views(jax.random.split(KEY, 400), {"image": image}, jnp.int32(0))["image"] - image
    np.testing.assert_allclose(np.std(made), 0.05, rtol=0.02)
    assert abs(float(np.mean(made))) < 1e-3


def test_vae():
    objective, params, batch, inputs, _, found = made("vae", beta=0.5, pixel_std=0.7)
    mean, logvar = np.split(np.asarray(code_of(objective, params, batch["image"]), np.float64), 2, 1)
    code = mean + np.exp(logvar / 2) * np.asarray(inputs["draw"])
    target = objective.pixels(batch["image"]).reshape(tiny.BATCH, -1)
    error = np.asarray(decoded(params["decoder"], jnp.asarray(code, jnp.float32)) - target, np.float64)
    np.testing.assert_allclose(term(found, "reconstruction"), (error**2).sum(1).mean() / (2 * 0.49), rtol=1e-4)
    np.testing.assert_allclose(
        term(found, "kl"), (0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)).sum(1).mean(), rtol=1e-3
    )
    assert found.terms["kl"][0] == 0.5


def test_draws_of_codes_are_standard_normal():
    objective = tiny.make("vae").unwrapped
    draw = objective.views(jax.random.split(KEY, 3000), {"image": jnp.zeros((3000, 8, 8, 3))}, jnp.int32(0))["draw"]
    assert draw.shape == (3000, 6)
    np.testing.assert_allclose(np.mean(draw, 0), 0, atol=0.08)
    np.testing.assert_allclose(np.cov(draw, rowvar=False), np.eye(6), atol=0.1)


def test_features_of_codes_have_the_size_of_views():
    """Evaluations see whole images, while the map to the code knows the places of a view."""
    objective = dataclasses.replace(tiny.make("vae").unwrapped, augment=Single(size=4))
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    found = objective.features(params, extra, batch)
    small = resize(batch["image"], 4)
    mean = code_of(objective, params, small)[:, :6]
    np.testing.assert_allclose(found["code"], mean, atol=1e-5)
    np.testing.assert_allclose(found["pixels"], small.reshape(tiny.BATCH, -1), atol=1e-6)
    made = unnormalize(decoded(params["decoder"], mean).reshape(small.shape), objective.mean, objective.std)
    np.testing.assert_allclose(found["reconstruction"], made.reshape(tiny.BATCH, -1), atol=1e-4)


@pytest.mark.parametrize("noise", ["masking", "salt_and_pepper"])
def test_shares_of_noise_are_at_most_one(noise):
    groups = tiny.config("autoencoder")
    wrong = {**groups["objective"], "noise": noise, "noise_level": 25.0}
    with pytest.raises(UserError, match=r"noise_level: got 25, must be at most 1"):
        objectives.create({**groups, "objective": wrong}, tiny.SPEC)
