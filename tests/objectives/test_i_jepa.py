"""I-JEPA: blocks by large samples, the loss by its definition, and what encoder and teacher see."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.objectives.base import apply, still, views_of

KEY = jax.random.key(6)
GRID = (14, 12)


def blocks(count=4000, number=2, scale=(0.15, 0.2), aspect=(0.75, 1.5)):
    keys = views.example_keys(KEY, count)
    return np.asarray(jax.jit(lambda keys: views.random_blocks(keys, GRID, number, scale, aspect))(keys))


def test_blocks_are_rectangles_of_the_size_that_is_asked_for():
    found = blocks().reshape(-1, *GRID)
    heights, widths = found.any(2).sum(1), found.any(1).sum(1)
    np.testing.assert_array_equal(found.sum((1, 2)), heights * widths)  # no holes
    for block in found[:50]:
        for side in (block.any(1), block.any(0)):
            assert (np.diff(np.flatnonzero(side)) == 1).all()
    area = 14 * 12 * np.array([0.15, 0.2])
    assert heights.min() == round(np.sqrt(area[0] * 0.75)) and heights.max() == round(np.sqrt(area[1] * 1.5))
    assert widths.min() == round(np.sqrt(area[0] / 1.5)) and widths.max() == round(np.sqrt(area[1] / 0.75))
    assert abs(found.mean() - 0.175) < 0.003  # rounding changes the mean area by less
    whole = blocks(10, 1, (1.0, 1.0), (1.0, 1.0)).reshape(-1, *GRID)
    assert (whole.any(1).sum(1) == 12).all()  # sides are cut at the grid


def test_places_of_blocks_are_uniform():
    found = blocks(20_000, 1, (0.15, 0.15), (1.0, 1.0)).reshape(-1, *GRID)  # 5 x 5
    top, left = found.any(2).argmax(1), found.any(1).argmax(1)
    for place, places in ((top, 10), (left, 8)):
        counts = np.bincount(place, minlength=places)
        assert len(counts) == places and abs(counts - len(found) / places).max() < 5 * np.sqrt(len(found) / places)


def test_subsets_are_uniform_within_their_rank():
    candidate = jnp.asarray(np.arange(10) % 2 == 0)
    keys = views.example_keys(KEY, 6000)
    found = np.asarray(views.random_subset(keys, jnp.broadcast_to(candidate, (6000, 10)), 3))
    assert (found % 2 == 0).all() and all(len(set(row)) == 3 for row in found)
    counts = np.bincount(found.ravel(), minlength=10)[::2]
    assert abs(counts - 3600).max() < 5 * np.sqrt(3600)
    more = np.asarray(views.random_subset(keys, jnp.broadcast_to(candidate, (6000, 10)), 8))
    assert all(set(row[:5]) == {0, 2, 4, 6, 8} and len(set(row)) == 8 for row in more)
    counts = np.bincount(more.ravel(), minlength=10)[1::2]
    assert abs(counts - 3600).max() < 5 * np.sqrt(3600)


def made(**settings):
    objective = dataclasses.replace(tiny.make("i_jepa").unwrapped, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)
    noisy = lambda tree: jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), tree)  # noqa: E731
    params, extra = noisy(params), noisy(extra)
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    return objective, params, extra, inputs, still(KEY, batch)


@pytest.mark.parametrize("error", ["mse", "smooth_l1"])
@pytest.mark.parametrize("normalize", [True, False])
def test_loss_by_its_definition(error, normalize):
    objective, params, extra, inputs, ctx = made(error=error, normalize_targets=normalize)
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    images = objective.pixels(inputs["image"])
    taught = np.asarray(apply(objective.model, extra["teacher"]["encoder"], images).tokens, np.float64)
    if normalize:
        taught = (taught - taught.mean(-1, keepdims=True)) / np.sqrt(taught.var(-1, keepdims=True) + 1e-5)
    predicted, total = np.asarray(outputs["predicted"], np.float64), []
    for row, targets in enumerate(np.asarray(inputs["targets"])):
        for block in targets:
            e = np.abs(predicted[row] - taught[row])[block]
            total.append(np.mean(e**2 if error == "mse" else np.where(e < 1, e**2 / 2, e - 0.5)))
    found = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx).terms
    assert set(found) == {error}
    _, value, weight = found[error]
    np.testing.assert_allclose(value / weight, np.mean(total), rtol=1e-4)


def test_the_encoder_sees_the_context_and_no_target():
    objective, params, extra, inputs, ctx = made()
    hidden = np.asarray(inputs["targets"]).any(1)
    keep = np.asarray(inputs["keep"])
    assert keep.shape[1] == round(0.3 * hidden.shape[1])
    free = hidden.sum(1) < hidden.shape[1]
    for row in np.flatnonzero(free):
        assert not hidden[row, keep[row]].any()
    seen = np.zeros_like(hidden)
    np.put_along_axis(seen, keep, True, 1)
    before = jax.jit(objective.encode)(params, extra, inputs, ctx)
    cut = views.patchify(inputs["image"], 2)
    other = views.unpatchify(jnp.where(seen[..., None], cut, 1 - cut), (8, 8, 3))
    after = jax.jit(objective.encode)(params, extra, {**inputs, "image": other}, ctx)
    np.testing.assert_allclose(after["predicted"], before["predicted"], atol=1e-5)
    assert np.abs(after["taught"] - before["taught"]).max() > 1e-2  # the teacher sees everything


def test_no_gradient_reaches_the_teacher():
    objective, params, extra, inputs, ctx = made()

    def value(teacher):
        outputs = objective.encode(params, {"teacher": teacher}, inputs, ctx)
        return objective.loss(params, extra, outputs, inputs, ctx).terms["mse"][1]

    assert not any(np.any(g) for g in jax.tree.leaves(jax.grad(value)(extra["teacher"])))


@pytest.mark.parametrize("step", [0, 5, 10])
def test_momentum_rises_on_a_line(step):
    objective, params, extra, _, _ = made()
    moved = {**params, "encoder": jax.tree.map(lambda x: x + 1.0, extra["teacher"]["encoder"])}
    after = objective.update(extra, moved, {}, (), jnp.int32(step))["teacher"]
    decay = 0.996 + 0.004 * step / tiny.STEPS
    for old, new in zip(jax.tree.leaves(extra["teacher"]), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(new, old + (1 - decay), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 0.01}, r"objective\.context: got 0\.01, which is 0 of 16 patches, must be at least 1"),
        ({"context": 0.9}, r"objective\.context: got 0\.9, which is 14 of 16 patches, must be .* most the 12 that"),
        (
            {"target_scale": (0.5, 0.2)},
            r"target_scale: got \(0\.5, 0\.2\), the first number must be at most the second",
        ),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    groups = tiny.config("i_jepa")
    with pytest.raises(UserError, match=message):
        objectives.create({**groups, "objective": {**groups["objective"], **settings}}, tiny.SPEC, tiny.STEPS)
