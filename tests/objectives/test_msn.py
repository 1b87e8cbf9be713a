"""MSN: the loss and its gradient by the definition, what the networks see, and the teacher."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from loss_definitions import log_softmax, softmax, unit

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.objectives.base import apply, still, views_of

KEY = jax.random.key(9)


def made(**settings):
    objective = dataclasses.replace(tiny.make("msn").unwrapped, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)  # the teacher begins as the student
    extra = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.05, x.shape), x.dtype), extra)
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    return objective, params, extra, inputs, still(KEY, batch)


def balanced(scores, temperature, iterations):
    q = np.exp(scores / temperature)
    for _ in range(iterations):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdims=True)
    return q / q.sum(1, keepdims=True)


def value_of(prototypes, anchors, targets, temperature, weight):
    """Equation 1 for embeddings of anchors [B, A, D] and targets [B, K]."""
    w = prototypes / np.linalg.norm(prototypes, axis=0)
    values, mean = [], 0.0
    for row, target in zip(anchors, targets):
        for z in row:
            logits = unit(z) @ w / temperature
            values.append(-(target * log_softmax(logits)).sum())
            mean = mean + softmax(logits) / anchors.shape[0] / anchors.shape[1]
    return np.mean(values), -(mean * np.log(mean)).sum(), np.mean(values) + weight * (mean * np.log(mean)).sum()


@pytest.mark.parametrize(("iterations", "weight"), [(0, 1.0), (3, 0.3)])
def test_loss_by_its_definition(iterations, weight):
    objective, params, extra, inputs, ctx = made(sinkhorn_iterations=iterations, entropy_weight=weight)
    pixels, encoder = objective.pixels, params["encoder"]
    large = apply(objective.model, encoder, pixels(inputs["global"][:, 1]), keep=inputs["keep"][:, 0]).pooled
    small = [apply(objective.model, encoder, pixels(inputs["local"][:, i])).pooled for i in range(2)]
    target = apply(objective.model, extra["teacher"]["encoder"], pixels(inputs["global"][:, 0])).pooled
    head = objective.projector.module()
    anchors = np.asarray(apply(head, params["projector"], jnp.stack([large, *small], 1)), np.float64)
    target = np.asarray(apply(head, extra["teacher"]["projector"], target), np.float64)
    prototypes = np.asarray(params["prototypes"]["kernel"], np.float64)
    scores = np.stack([unit(z) @ (prototypes / np.linalg.norm(prototypes, axis=0)) for z in target])
    targets = balanced(scores, 0.025, iterations)
    entropy_of_targets = -(targets * np.log(np.maximum(targets, 1e-300))).sum(1).mean()
    expected = value_of(prototypes, anchors, targets, 0.1, weight)

    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)

    def loss(kernel):
        changed = {**params, "prototypes": {"kernel": kernel}}
        found = objective.loss(changed, extra, outputs, inputs, ctx)
        return sum(c * s / w for c, s, w in found.terms.values()), found

    (total, found), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(params["prototypes"]["kernel"])
    parts = {name: float(s / w) for name, (_, s, w) in found.terms.items()}
    np.testing.assert_allclose([parts["cross_entropy"], parts["mean_entropy"], total], expected, rtol=1e-4)
    value, count = found.metrics["teacher_entropy"]
    np.testing.assert_allclose(value / count, entropy_of_targets, rtol=1e-3)
    for i, j in ((0, 0), (3, 5), (15, 23)):  # targets are constants
        step = np.zeros_like(prototypes)
        step[i, j] = 1e-5
        values = [value_of(prototypes + s * step, anchors, targets, 0.1, weight)[2] for s in (1, -1)]
        np.testing.assert_allclose(slope[i, j], (values[0] - values[1]) / 2e-5, rtol=1e-3, atol=1e-5)


def test_anchors_do_not_see_dropped_patches_and_the_target_sees_all():
    objective, params, extra, inputs, ctx = made()
    keep = np.asarray(inputs["keep"])
    assert keep.shape == (tiny.BATCH, 1, 8)  # half of 16
    seen = np.zeros((tiny.BATCH, 16), bool)
    np.put_along_axis(seen, keep[:, 0], True, 1)
    encode = jax.jit(objective.encode)
    before = encode(params, extra, inputs, ctx)
    for crop, changes in ((1, ()), (0, ("target",))):
        cut = views.patchify(inputs["global"][:, crop], 2)
        other = views.unpatchify(jnp.where(seen[..., None], cut, 1 - cut), (8, 8, 3))
        after = encode(params, extra, {**inputs, "global": inputs["global"].at[:, crop].set(other)}, ctx)
        for name in ("anchors", "target"):
            difference = np.abs(after[name] - before[name]).max()
            assert difference > 1e-3 if name in changes else difference < 1e-5


def test_the_teacher_follows_on_a_line_and_has_no_gradient():
    objective, params, extra, inputs, ctx = made()

    def value(teacher):
        outputs = objective.encode(params, {"teacher": teacher}, inputs, ctx)
        terms = objective.loss(params, {"teacher": teacher}, outputs, inputs, ctx).terms
        return sum(c * s / w for c, s, w in terms.values())

    assert not any(np.any(g) for g in jax.tree.leaves(jax.grad(value)(extra["teacher"])))
    after = objective.update(extra, params, {}, (), jnp.int32(5))["teacher"]
    student, decay = {name: params[name] for name in after}, 0.996 + 0.004 * 5 / tiny.STEPS
    for old, new, own in zip(*map(jax.tree.leaves, (extra["teacher"], after, student)), strict=True):
        np.testing.assert_allclose(new, decay * old + (1 - decay) * own, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.01}, r"objective\.mask_ratio: got 0\.01, which hides 0 of 16 patches"),
        (
            {"augment": {"name": "multi_crop", "global_crops": 1, "local_crops": 0}},
            r"objective\.augment\.global_crops: got 1 without local crops, must be at least 2",
        ),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    groups = tiny.config("msn")
    with pytest.raises(UserError, match=message):
        objectives.create({**groups, "objective": {**groups["objective"], **settings}}, tiny.SPEC, tiny.STEPS)
