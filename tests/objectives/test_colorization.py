"""Colourisation: the loss by its definition, the frequency of colours, and what the encoder sees."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from loss_definitions import log_softmax, softmax

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.objectives.base import apply, still, views_of

KEY = jax.random.key(10)


def made(**settings):
    objective = dataclasses.replace(tiny.make("colorization").unwrapped, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)  # the head begins as zeros
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), params)
    if extra:
        extra = {"frequency": jnp.asarray(rng.dirichlet(np.ones(objective.bins)), jnp.float32)}
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    return objective, params, extra, inputs, still(KEY, batch)


def predictions(objective, params, inputs):
    """Outputs [B, rows, columns, Q or 2] of the cells of 2 x 2 pixels of images of 8 x 8, in patches of 4 x 4."""
    light = np.repeat(np.asarray(views.rgb_to_lab(inputs["image"]))[..., :1] / 100, 3, -1)
    tokens = apply(objective.model, params["encoder"], objective.pixels(jnp.asarray(light))).tokens
    head = params["head"]["linear"]
    flat = np.asarray(tokens, np.float64) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    out = flat.reshape(len(light), 2, 2, 2, 2, -1)  # rows and columns of patches, then of cells
    return out.swapaxes(2, 3).reshape(len(light), 4, 4, -1)


def means(inputs):
    """Mean a and b of each cell, [B, 4, 4, 2]."""
    ab = np.asarray(views.rgb_to_lab(inputs["image"]), np.float64)[..., 1:]
    return np.array(
        [[[image[r : r + 2, c : c + 2].mean((0, 1)) for c in range(0, 8, 2)] for r in range(0, 8, 2)] for image in ab]
    )


def test_classes_by_their_definition():
    objective, params, extra, inputs, ctx = made()
    bins, out, ab = views.ab_bins(objective.bins), predictions(objective, params, inputs), means(inputs)
    rare = np.asarray(views.rebalancing(extra["frequency"], bins, objective.mix), np.float64)
    values, errors, chroma, counts = [], [], [], np.zeros(len(bins))
    for logits, colour in zip(out.reshape(-1, len(bins)), ab.reshape(-1, 2)):
        distance = ((bins - colour) ** 2).sum(1)
        near = np.argsort(distance)[:5]
        z = np.exp(-distance[near] / 50)
        values.append(-rare[near[0]] * (z / z.sum() * log_softmax(logits)[near]).sum())
        sharp = softmax(logits / 0.38) @ bins
        errors.append(np.linalg.norm(sharp - colour))
        chroma.append((np.linalg.norm(sharp), np.linalg.norm(colour)))
        counts[near[0]] += 1
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    found = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx)
    scale, total, weight = found.terms["cross_entropy"]
    assert scale == 1.0 and weight == tiny.BATCH * 16
    np.testing.assert_allclose(total / weight, np.mean(values), rtol=1e-4)
    error, count = found.metrics["color_error"]
    np.testing.assert_allclose(error / count, np.mean(errors), rtol=1e-4)
    made_of, true = found.metrics["chroma"]
    np.testing.assert_allclose(made_of / true, np.divide(*np.sum(chroma, 0)), rtol=1e-4)
    np.testing.assert_allclose(found.sums["counts"], counts)


def test_regression_by_its_definition():
    objective, params, extra, inputs, ctx = made(form="regression")
    assert extra == {}
    out, ab = predictions(objective, params, inputs), means(inputs)
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    found = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx)
    _, total, weight = found.terms["mse"]
    np.testing.assert_allclose(total / weight, np.mean((out - ab / 110) ** 2), rtol=1e-4)
    error, count = found.metrics["color_error"]
    np.testing.assert_allclose(error / count, np.linalg.norm(110 * out - ab, axis=-1).mean(), rtol=1e-4)


def test_the_frequency_is_the_mean_over_steps():
    objective, _, _, _, _ = made()
    rng, extra, shares = np.random.default_rng(1), {"frequency": jnp.full(objective.bins, 0.5)}, []
    for step in range(4):
        counts = rng.integers(0, 9, objective.bins)
        shares.append(counts / counts.sum())
        extra = objective.update(extra, {}, {"counts": jnp.asarray(counts, jnp.float32)}, (), jnp.int32(step))
        np.testing.assert_allclose(extra["frequency"], np.mean(shares, 0), rtol=1e-5)


def test_the_encoder_does_not_see_colours():
    objective, params, extra, inputs, ctx = made()
    lab = views.rgb_to_lab(inputs["image"])
    grey = views.lab_to_rgb(lab * jnp.array([1.0, 0, 0]))
    encode = jax.jit(objective.encode)
    np.testing.assert_allclose(
        encode(params, extra, {"image": grey}, ctx), encode(params, extra, inputs, ctx), atol=2e-4
    )
    features = [objective.features(params, extra, {"image": image})["pooled"] for image in (grey, inputs["image"])]
    np.testing.assert_allclose(*features, atol=2e-4)


def test_true_colours_restore_the_image():
    """Pictures put the predicted colours where they belong."""
    objective, params, extra, _, _ = made(cell=1)
    image = tiny.batch()["image"][:2].astype(jnp.float32) / 255

    class Perfect(type(objective)):
        def decoded(self, outputs):
            return self.colours(image)

    perfect = Perfect(**{f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)})
    perfect = dataclasses.replace(perfect.held_out())
    original, grey, whole = perfect.coloured(params, extra, {"image": image}, KEY)
    np.testing.assert_allclose(original, image, atol=1e-5)
    np.testing.assert_allclose(whole, image, atol=1e-3)
    np.testing.assert_allclose(np.ptp(grey, axis=-1), 0, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "settings", "message"),
    [
        (1, {}, r"objective\.name: colorization needs images of 3 channels, but the data have 1"),
        (3, {"cell": 3}, r"objective\.cell: got 3, must divide model\.patch_size, which is 4"),
    ],
)
def test_settings_that_do_not_fit(channels, settings, message):
    groups = tiny.config("colorization")
    image = {"shape": [8, 8, channels], "dtype": "uint8"}
    spec = dataclasses.replace(tiny.SPEC, elements={**tiny.SPEC.elements, "image": image})
    with pytest.raises(UserError, match=message):
        objectives.create({**groups, "objective": {**groups["objective"], **settings}}, spec, tiny.STEPS)
