"""DeepCluster: the loss by its definition, the queue, and what a clustering changes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from loss_definitions import log_softmax

from ssljax import objectives
from ssljax.base import k_means as clustering
from ssljax.base.errors import UserError
from ssljax.objectives.base import apply, still, views_of
from ssljax.objectives.clustering.deep_cluster import reduced, whitener

KEY = jax.random.key(12)


def made(**settings):
    objective = dataclasses.replace(tiny.make("deep_cluster").unwrapped, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)  # the classifier begins as zeros
    moved = lambda x: x + jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype)  # noqa: E731
    params = jax.tree.map(moved, params)
    extra = {**extra, "start": jax.tree.map(moved, extra["start"])}
    extra |= {"mean": moved(extra["mean"]), "whitening": moved(extra["whitening"])}
    extra["sizes"] = jnp.asarray([7.0, 0, 12, 1, 12])
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    return objective, params, extra, inputs, still(KEY, batch)


@pytest.mark.parametrize("balance", [True, False])
def test_loss_by_its_definition(balance):
    objective, params, extra, inputs, ctx = made(balance=balance)
    np.testing.assert_allclose(inputs["whole"], objective.prepare(tiny.batch())["image"], atol=1e-6)
    view, whole, then = (
        np.asarray(apply(objective.model, network, objective.pixels(inputs[name])).pooled, np.float64)
        for network, name in (
            (params["encoder"], "image"),
            (params["encoder"], "whole"),
            (extra["start"]["encoder"], "whole"),
        )
    )
    z = (then - np.asarray(extra["mean"])) @ np.asarray(extra["whitening"], np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    clusters = [np.argmin(((row - np.asarray(extra["centroids"])) ** 2).sum(1)) for row in z]
    head = {
        k: np.asarray(params["head"]["linear"][k] - extra["start"]["head"]["linear"][k]) for k in ("kernel", "bias")
    }
    logits = view @ head["kernel"] + head["bias"]
    sizes = np.asarray(extra["sizes"])
    value = 0.0
    for row, k in zip(logits, clusters):
        weight = sizes.sum() / 4 / max(sizes[k], 1) if balance else 1.0  # four clusters are not empty
        value -= weight * log_softmax(row)[k] / len(logits)
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    np.testing.assert_array_equal(outputs["clusters"], clusters)
    found = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx)
    _, total, count = found.terms["deep_cluster"]
    assert count == tiny.BATCH
    np.testing.assert_allclose(total / count, value, rtol=1e-4)
    np.testing.assert_allclose(found.rows, whole, rtol=1e-4, atol=1e-5)
    shares = sizes[sizes > 0] / sizes.sum()
    entropy, _ = found.metrics["cluster_entropy"]
    np.testing.assert_allclose(entropy / count, -(shares * np.log(shares)).sum(), rtol=1e-5)


def test_whitened_features_are_uncorrelated():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + 3
    mean, whitening = jax.jit(lambda x: whitener(x, 4))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-4)
    z = (x - x.mean(0)) @ np.asarray(whitening)
    np.testing.assert_allclose(z.T @ z / 400, np.eye(4), atol=2e-3)
    variance, directions = np.linalg.eigh(np.cov(x, rowvar=False, bias=True))
    for i in range(4):  # the largest ones
        cosine = np.asarray(whitening)[:, i] @ directions[:, -1 - i] * np.sqrt(variance[-1 - i])
        np.testing.assert_allclose(abs(cosine), 1, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(reduced(x, mean, whitening), axis=1), 1, rtol=1e-5)


def test_a_clustering_comes_every_few_steps_once_the_queue_is_full():
    objective, params, extra, _, _ = made(refresh=3)  # a queue of 32
    update, rng = jax.jit(objective.update), np.random.default_rng(2)
    rows, seen = [], []
    for step in range(6):
        rows.insert(0, rng.normal(size=(8, objective.model.width)).astype(np.float32))
        before, extra = extra, update(extra, params, (), jnp.asarray(rows[0]), jnp.int32(step))
        count = min(len(rows), 4)
        np.testing.assert_array_equal(extra["queue"][: 8 * count], np.concatenate(rows[:count]))
        changed = bool(np.any(extra["centroids"] != before["centroids"]))
        seen.append(changed)
        if not changed:
            jax.tree.map(np.testing.assert_array_equal, extra["start"], before["start"])
            continue
        mean, whitening = whitener(extra["queue"], 4)
        np.testing.assert_allclose(extra["mean"], mean, atol=1e-5)
        points = reduced(extra["queue"], extra["mean"], extra["whitening"])
        np.testing.assert_allclose(np.abs(extra["whitening"]), np.abs(whitening), rtol=1e-2, atol=1e-3)
        clusters = clustering.assign(points, extra["centroids"])
        np.testing.assert_array_equal(extra["sizes"], np.bincount(clusters, minlength=5))
        # The classifier begins anew: its logits are 0. This encoder assigns images from now on.
        jax.tree.map(np.testing.assert_array_equal, extra["start"], params)
    assert seen == [False, False, False, True, False, True]


def test_settings_that_do_not_fit():
    groups = tiny.config("deep_cluster")
    wrong = {**groups["objective"], "clusters": 33}
    with pytest.raises(UserError, match=r"objective\.clusters: got 33, must be at most objective\.queue, which is 32"):
        objectives.create({**groups, "objective": wrong}, tiny.SPEC)
