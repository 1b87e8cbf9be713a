"""Semi-supervised objectives: losses by their definitions, ramps, teachers, and settings that do not fit."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from loss_definitions import log_softmax, softmax

from ssljax import objectives
from ssljax.base.errors import UserError
from ssljax.objectives.base import apply, still, views_of
from ssljax.objectives.semi_supervised.semi_supervised import SemiSupervised, ramp
from ssljax.objectives.supervised.classification import Classification

KEY = jax.random.key(2)
METHODS = [name for name in objectives.REGISTRY if issubclass(objectives.REGISTRY.get(name), SemiSupervised)]


def made(name, **settings):
    objective = dataclasses.replace(tiny.make(name).unwrapped, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)  # classifiers begin as zeros
    noisy = lambda tree: jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), tree)  # noqa: E731
    params, extra = noisy(params), noisy(extra)
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    return objective, params, extra, batch, inputs, still(KEY, batch)


def logits_of(objective, params, images):
    pooled = apply(objective.model, params["encoder"], objective.pixels(images)).pooled
    return np.asarray(apply(objective.head(), params["head"], pooled), np.float64)


def cross_entropy(objective, params, batch, inputs):
    logits = logits_of(objective, params, inputs["image"])
    return np.mean([-log_softmax(row)[label] for row, label in zip(logits, np.asarray(batch["label"]))])


def definition(name, objective, params, extra, inputs, step):
    """(weight, mean loss) of the unlabelled images."""
    seen = inputs["unlabeled"].reshape(-1, *inputs["unlabeled"].shape[2:])  # [B m, K, h, w, C]
    first = logits_of(objective, params, seen[:, 0])
    if name == "mean_teacher":
        second = logits_of(objective, extra["teacher"], seen[:, 1])
        values = [np.mean((softmax(a) - softmax(b)) ** 2) for a, b in zip(first, second)]
        done = min(1.0, step / (objective.ramp * tiny.STEPS))
        return objective.weight * np.exp(-5 * (1 - done) ** 2), np.mean(values)
    strong = logits_of(objective, params, seen[:, 1]) if name == "fixmatch" else first
    values = []
    for weak, other in zip(first, strong):
        known = softmax(weak).max() >= objective.threshold
        values.append(-log_softmax(other)[np.argmax(weak)] if known else 0.0)
    if name == "fixmatch":
        assert 0 < np.mean(np.array(values) > 0) < 1
        return objective.weight, np.mean(values)
    start, end = (share * tiny.STEPS for share in objective.ramp)
    return objective.weight * np.clip((step - start) / (end - start), 0, 1), np.mean(values)


@pytest.mark.parametrize("step", [0, 2, 9])
@pytest.mark.parametrize("name", METHODS)
def test_loss_by_its_definition(name, step):
    objective, params, extra, batch, inputs, ctx = made(name)
    if name == "fixmatch":  # half of the images are confident
        weak = logits_of(objective, params, inputs["unlabeled"].reshape(-1, *inputs["unlabeled"].shape[2:])[:, 0])
        middle = float(np.median([softmax(row).max() for row in weak]))
        objective = dataclasses.replace(objective, threshold=middle)
    ctx = ctx.replace(step=jnp.int32(step))
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    found = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx).terms
    weight, value = definition(name, objective, params, extra, inputs, step)
    scale, total, count = found[objective.term]
    assert count == 2 * tiny.BATCH
    np.testing.assert_allclose(scale, weight, rtol=1e-6)
    np.testing.assert_allclose(total / count, value, rtol=1e-5)
    _, total, count = found["cross_entropy"]
    np.testing.assert_allclose(total / count, cross_entropy(objective, params, batch, inputs), rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_held_out_loss_is_that_of_labelled_images(name):
    objective, params, extra, batch, _, ctx = made(name)
    plain = objective.held_out()
    assert isinstance(plain, Classification)
    labelled = {key: value for key, value in batch.items() if key != "unlabeled"}
    inputs = plain.views(jax.random.split(KEY, tiny.BATCH), labelled, jnp.int32(0))
    terms = plain.loss(params, extra, plain.encode(params, extra, inputs, ctx), inputs, ctx).terms
    assert set(terms) == {"cross_entropy"}
    np.testing.assert_array_equal(inputs["image"], batch["image"])


def test_rows_of_the_stream_stay_with_their_example():
    """Without augmentation, the views of row i are rows 2 i and 2 i + 1 of the stream."""
    _, _, _, batch, inputs, _ = made("pseudo_label")
    np.testing.assert_allclose(
        inputs["unlabeled"][:, :, 0].reshape(-1, 8, 8, 3), batch["unlabeled"]["image"], atol=1e-6
    )


def test_gradients_reach_the_strong_view_only():
    objective, params, extra, _, inputs, ctx = made("fixmatch", threshold=0.0)
    outputs = objective.encode(params, extra, inputs, ctx)

    def value(rest):
        terms = objective.loss(params, extra, {**outputs, "unlabelled": rest}, inputs, ctx).terms
        return terms["fixmatch"][1]

    grads = np.asarray(jax.grad(value)(outputs["unlabelled"]))
    assert not grads[:, :, 0].any() and np.abs(grads[:, :, 1]).max() > 1e-3


def test_teacher_follows_slower_after_the_ramp():
    objective, _, extra, _, _, _ = made("mean_teacher", ramp=0.5)
    moved = jax.tree.map(lambda x: x + 1.0, extra["teacher"])
    for step, decay in ((0, 0.99), (4, 0.99), (5, 0.999), (9, 0.999)):
        after = objective.update(extra, moved, {}, (), jnp.int32(step))["teacher"]
        for old, new in zip(jax.tree.leaves(extra["teacher"]), jax.tree.leaves(after), strict=True):
            np.testing.assert_allclose(new, old + (1 - decay), atol=1e-6)


def test_evaluations_use_the_teacher():
    objective, params, extra, batch, _, _ = made("mean_teacher")
    found = objective.features(params, extra, batch)["logits"]
    np.testing.assert_allclose(found, logits_of(objective, extra["teacher"], batch["image"]), atol=1e-5)
    assert np.abs(found - logits_of(objective, params, batch["image"])).max() > 1e-3


def test_held_out_losses_use_the_teacher():
    objective, params, extra, batch, _, ctx = made("mean_teacher")
    plain = objective.held_out()
    labelled = {key: value for key, value in batch.items() if key != "unlabeled"}
    inputs = plain.views(jax.random.split(KEY, tiny.BATCH), labelled, jnp.int32(0))
    scale, total, count = plain.loss(params, extra, plain.encode(params, extra, inputs, ctx), inputs, ctx).terms[
        "cross_entropy"
    ]
    right = cross_entropy(objective, extra["teacher"], batch, inputs)
    np.testing.assert_allclose(scale * total / count, right, rtol=1e-5)
    assert abs(right - cross_entropy(objective, params, batch, inputs)) > 1e-3


def test_student_and_teacher_must_differ():
    groups = tiny.config("mean_teacher")
    still = {**groups["model"], "dropout": 0.0, "drop_path": 0.0}
    whole = {**groups["objective"], "augment": {"name": "single", "crop_scale": (1.0, 1.0), "augment": {"flip": 0.0}}}
    with pytest.raises(UserError, match=r"objective\.augment: without augmentation and dropout"):
        objectives.create({"model": still, "objective": whole}, tiny.SPEC)
    for model in (still, {"name": "resnet", "preset": "micro"}):
        objectives.create({"model": model, "objective": groups["objective"]}, tiny.SPEC)


def test_ramp():
    assert [float(ramp(jnp.int32(step), 10, 0.2, 0.6)) for step in (0, 2, 4, 6, 9)] == [0, 0, 0.5, 1, 1]
    assert float(ramp(jnp.int32(3), None, 0.2, 0.6)) == 1
    assert [float(ramp(jnp.int32(step), 10, 0.0, 0.0)) for step in (0, 1, 5)] == [1, 1, 1]
    assert [float(ramp(jnp.int32(step), 10, 0.5, 0.5)) for step in (4, 5, 6)] == [0, 1, 1]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (None, r"data\.streams: this objective needs a stream 'unlabeled'"),
        ({"elements": {"label": {"shape": [], "dtype": "int32"}}}, r"data\.streams\.unlabeled: has no images; name"),
        ({"ratio": 1.5}, r"data\.streams\.unlabeled\.ratio: got 1\.5, must be a whole number"),
        (
            {"elements": {"image": {"shape": [9, 9, 3], "dtype": "uint8"}}},
            r"data\.streams\.unlabeled: its images are \[9, 9, 3\], but those of the source are \[8, 8, 3\]",
        ),
    ],
)
def test_streams_that_do_not_fit(name, stream, message):
    streams = {} if stream is None else {"unlabeled": {**tiny.SPEC.streams["unlabeled"], **stream}}
    with pytest.raises(UserError, match=message):
        objectives.create(tiny.config(name), dataclasses.replace(tiny.SPEC, streams=streams))
