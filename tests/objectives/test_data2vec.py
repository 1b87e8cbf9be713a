"""data2vec: blocks of masked patches by large samples, the loss by its definition, and what the networks see."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.objectives.base import apply, still, views_of

KEY = jax.random.key(8)


def drawn(rng, grid, count, smallest, aspect, draws):
    """One mask, block by block."""
    mask = np.zeros(grid, bool)
    for _ in range(draws):
        left = count - mask.sum()
        area = rng.uniform(smallest, max(left, smallest))
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height > grid[0] or width > grid[1]:
            continue
        top, start = rng.integers(grid[0] - height + 1), rng.integers(grid[1] - width + 1)
        block = np.zeros(grid, bool)
        block[top : top + height, start : start + width] = True
        if (block & ~mask).sum() <= left:
            mask |= block
    free = rng.permutation(np.flatnonzero(~mask.ravel()))[: count - mask.sum()]
    mask.ravel()[free] = True
    return mask.ravel()


@pytest.mark.parametrize(("grid", "ratio", "smallest", "draws"), [((6, 5), 0.6, 4, 20), ((4, 7), 0.4, 3, 2)])
def test_masks_have_the_distribution_of_the_algorithm(grid, ratio, smallest, draws):
    count, samples, aspect = round(ratio * math.prod(grid)), 6000, (0.3, 1 / 0.3)
    keys = views.example_keys(KEY, samples)
    made = jax.jit(lambda keys: views.random_block_mask(keys, grid, ratio, smallest, aspect, draws))(keys)
    rng = np.random.default_rng(0)
    expected = np.stack([drawn(rng, grid, count, smallest, aspect, draws) for _ in range(samples)]).astype(float)
    found = np.asarray(made, float)
    assert made.dtype == bool and (found.sum(1) == count).all() and (expected.sum(1) == count).all()
    np.testing.assert_allclose(found.mean(0), expected.mean(0), atol=0.045)  # 5 standard deviations
    np.testing.assert_allclose(found.T @ found / samples, expected.T @ expected / samples, atol=0.045)
    np.testing.assert_array_equal(views.random_block_mask(keys[:3], grid, ratio, smallest, aspect, draws), made[:3])


def made(**settings):
    objective = dataclasses.replace(tiny.make("data2vec").unwrapped, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)  # the head begins as zeros
    moved = lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype)  # noqa: E731
    params, extra = jax.tree.map(moved, (params, extra))
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    return objective, params, extra, inputs, still(KEY, batch)


@pytest.mark.parametrize(("beta", "top"), [(0.5, 2), (2.0, 1), (0.0, 2)])
def test_loss_by_its_definition(beta, top):
    objective, params, extra, inputs, ctx = made(beta=beta, top_blocks=top)
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    images, mask = objective.pixels(inputs["image"]), np.asarray(inputs["mask"])
    states = np.asarray(apply(objective.model, extra["teacher"]["encoder"], images, states=True).states, np.float64)
    assert len(states) == 3  # the input of the first block, and the outputs of two
    patches = states[3 - top :, :, 1:]  # without the class token
    normal = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, keepdims=True) + 1e-5)
    target = normal.mean(0)
    hidden = np.asarray(apply(objective.model, params["encoder"], images, patch_mask=inputs["mask"]).tokens, np.float64)
    predicted = hidden @ np.asarray(params["head"]["linear"]["kernel"]) + np.asarray(params["head"]["linear"]["bias"])
    e = np.abs(predicted - target)
    error = e if beta == 0 else np.where(e < beta, e**2 / (2 * beta), e - beta / 2)
    found = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx).terms
    assert set(found) == {"smooth_l1"}
    scale, value, weight = found["smooth_l1"]
    assert scale == 1.0 and weight == mask.sum() == tiny.BATCH * 8
    np.testing.assert_allclose(value / weight, error.mean(-1)[mask].mean(), rtol=1e-4)


def test_the_student_sees_no_masked_patch_and_the_teacher_sees_all():
    objective, params, extra, inputs, ctx = made()
    cut = views.patchify(inputs["image"], 2)
    other = views.unpatchify(jnp.where(inputs["mask"][..., None], 1 - cut, cut), (8, 8, 3))
    encode = jax.jit(objective.encode)
    before, after = (encode(params, extra, {**inputs, "image": image}, ctx) for image in (inputs["image"], other))
    np.testing.assert_allclose(after["predicted"], before["predicted"], atol=1e-5)
    assert np.abs(after["taught"] - before["taught"]).max() > 1e-2


def test_the_teacher_follows_and_has_no_gradient():
    objective, params, extra, inputs, ctx = made()

    def value(teacher):
        outputs = objective.encode(params, {"teacher": teacher}, inputs, ctx)
        return objective.loss(params, extra, outputs, inputs, ctx).terms["smooth_l1"][1]

    assert not any(np.any(g) for g in jax.tree.leaves(jax.grad(value)(extra["teacher"])))
    after = objective.update(extra, params, {}, (), jnp.int32(7))["teacher"]
    for old, new, student in zip(*map(jax.tree.leaves, (extra["teacher"], after, params["encoder"])), strict=True):
        np.testing.assert_allclose(new, 0.9998 * old + 0.0002 * student, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ({}, {"top_blocks": 3}, r"objective\.top_blocks: got 3, must be at most the 2 blocks of the model"),
        ({"mask_token": False}, {}, r"model\.mask_token: got false, must be true"),
        ({}, {"mask_ratio": 0.01}, r"objective\.mask_ratio: got 0\.01, which hides 0 of 16 patches"),
    ],
)
def test_settings_that_do_not_fit(model, settings, message):
    groups = tiny.config("data2vec")
    groups = {"model": {**groups["model"], **model}, "objective": {**groups["objective"], **settings}}
    with pytest.raises(UserError, match=message):
        objectives.create(groups, tiny.SPEC, tiny.STEPS)
