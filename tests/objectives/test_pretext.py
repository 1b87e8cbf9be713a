"""Pretext objectives: losses by their definitions, what their classifiers see, and settings that do not fit."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from loss_definitions import log_softmax

from ssljax import objectives
from ssljax.base.errors import UserError
from ssljax.objectives.base import apply, still, views_of
from ssljax.objectives.pretext.puzzle import Puzzle

KEY = jax.random.key(1)
PUZZLES = [name for name in objectives.REGISTRY if issubclass(objectives.REGISTRY.get(name), Puzzle)]


def made(name, **settings):
    objective = dataclasses.replace(tiny.make(name).unwrapped, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)  # classifiers may begin as zeros
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), params)
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    return objective, params, extra, inputs, still(KEY, batch)


@pytest.mark.parametrize("name", PUZZLES)
def test_loss_by_its_definition(name):
    """Every view is encoded alone; the classifier sees one view, or the features of all views side by side."""
    objective, params, extra, inputs, ctx = made(name)
    images, labels = inputs["image"], np.asarray(inputs["label"])
    count = images.shape[1]
    features = [
        np.asarray(apply(objective.model, params["encoder"], objective.pixels(images[:, v])).pooled, np.float64)
        for v in range(count)
    ]
    rows = np.concatenate(features) if objective.each else np.concatenate(features, 1)
    answers = labels.T.reshape(-1) if objective.each else labels
    weights = [np.asarray(layer["kernel"], np.float64) for _, layer in sorted(params["head"].items())]
    biases = [np.asarray(layer["bias"], np.float64) for _, layer in sorted(params["head"].items())]
    for i, (kernel, bias) in enumerate(zip(weights, biases)):
        rows = rows @ kernel + bias
        rows = rows if i == len(weights) - 1 else np.maximum(rows, 0)
    values = [-log_softmax(row)[answer] for row, answer in zip(rows, answers)]
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    found = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx)
    scale, total, weight = found.terms["cross_entropy"]
    assert scale == 1.0 and weight == len(values) and rows.shape[1] == objective.number
    np.testing.assert_allclose(total / weight, np.mean(values), rtol=1e-5)
    right, number = found.metrics["accuracy"]
    np.testing.assert_allclose(right / number, np.mean(rows.argmax(1) == answers), atol=1e-6)


@pytest.mark.parametrize("name", PUZZLES)
def test_size_is_that_of_the_views(name):
    objective, _, _, inputs, _ = made(name)
    assert inputs["image"].shape[1:4] == objective.size((8, 8))


def test_tiles_are_normalised():
    objective, _, _, inputs, _ = made("jigsaw")
    tiles = np.asarray(objective.pixels(inputs["image"]), np.float64)
    np.testing.assert_allclose(tiles.mean((2, 3, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(tiles.std((2, 3, 4)), 1, atol=1e-2)
    _, _, _, plain, _ = made("jigsaw", normalize_tiles=False)
    assert plain["image"].min() >= 0 and plain["image"].max() <= 1


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "jigsaw",
            {"gap": 4},
            r"objective\.gap: got 4, but a tile has a cell of 4 pixels in images of 8 x 8 \(at most 3\)",
        ),
        ("jigsaw", {"permutations": 25}, r"objective\.permutations: got 25, must be at most 24"),
        ("relative_patch", {"gap": 1}, r"objective\.patch: 2 with a gap of 1 and a jitter of 1 needs 10 pixels"),
    ],
)
def test_settings_that_do_not_fit(name, settings, message):
    groups = tiny.config(name)
    with pytest.raises(UserError, match=message):
        objectives.create({**groups, "objective": {**groups["objective"], **settings}}, tiny.SPEC)
