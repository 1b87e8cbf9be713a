"""Image GPT: tokens, losses and likelihoods by their definitions, the fitted palette, and its features."""

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
from ssljax.objectives.base import still, views_of

KEY = jax.random.key(3)
PIXELS, START = 64, 12


def made(model=None, **settings):
    groups = tiny.config("image_gpt")
    groups = {
        "model": {**groups["model"], "dropout": 0.0, **(model or {})},
        "objective": {**groups["objective"], **settings},
    }
    objective = objectives.create(groups, tiny.SPEC, tiny.STEPS).unwrapped
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), params)
    extra = {**extra, "frequency": jnp.asarray(rng.dirichlet(np.ones(12)), jnp.float32)}
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    return objective, params, extra, batch, inputs


def nearest(batch, extra):
    """The colours [B, T] by their definition: rows of pixels one after another, the nearest colour of each."""
    palette = np.asarray(extra["palette"], np.float64)
    images = np.asarray(batch["image"], np.float64)
    return np.array(
        [[np.argmin(((images[b, y, x] - palette) ** 2).sum(1)) for y in range(8) for x in range(8)] for b in range(16)]
    )


def logits_of(objective, params, tokens):
    hidden = objective.hidden(params, {"tokens": jnp.asarray(tokens, jnp.int32)}, None).tokens
    return np.asarray(objective.model.apply({"params": params["encoder"]}, hidden, method="logits"), np.float64)


def test_the_causal_loss_is_the_likelihood():
    objective, params, extra, batch, inputs = made()
    colors = nearest(batch, extra)
    read = np.concatenate([np.full((16, 1), START), colors[:, :-1]], 1)
    logits = logits_of(objective, params, read)
    nll = np.array([[-log_softmax(logits[b, t])[colors[b, t]] for t in range(PIXELS)] for b in range(16)])
    outputs = objective.encode(params, extra, inputs, still(KEY, batch))
    np.testing.assert_array_equal(outputs["colors"], colors)
    loss = objective.loss(params, extra, outputs, inputs, still(KEY, batch))
    _, total, count = loss.terms["nll"]
    assert count == 16 * PIXELS
    np.testing.assert_allclose(total, nll.sum(), rtol=1e-5)
    unigram, _ = loss.metrics["nll_unigram"]
    np.testing.assert_allclose(unigram, -np.log(np.asarray(extra["frequency"], np.float64))[colors].sum(), rtol=1e-5)
    log_prob, number = objective.score(params, extra, batch)
    np.testing.assert_allclose(log_prob, -nll.sum(1), rtol=1e-5)
    assert (number == PIXELS).all()


def test_no_pixel_sees_itself_or_later_ones():
    objective, params, extra, batch, _ = made()
    colors = jnp.asarray(nearest(batch, extra)[:1], jnp.int32)
    states = lambda colors: objective.hidden(params, {"tokens": objective.read(colors)}, None).tokens[0]  # noqa: E731
    before, after = states(colors), states(colors.at[0, 20].set((colors[0, 20] + 1) % 12))
    changed = np.abs(np.asarray(before - after)).max(-1) > 1e-6
    assert not changed[:21].any() and changed[21:].all()


def test_the_masked_loss_counts_hidden_pixels():
    objective, params, extra, batch, inputs = made(form="masked", rate=0.4)
    hidden, colors = np.asarray(inputs["hidden"]), nearest(batch, extra)
    logits = logits_of(objective, params, np.where(hidden, START, colors))
    nll = sum(-log_softmax(logits[b, t])[colors[b, t]] for b, t in np.argwhere(hidden))
    outputs = objective.encode(params, extra, inputs, still(KEY, batch))
    _, total, count = objective.loss(params, extra, outputs, inputs, still(KEY, batch)).terms["nll"]
    assert count == hidden.sum()
    np.testing.assert_allclose(total, nll, rtol=1e-5)
    with pytest.raises(NotImplementedError, match="no likelihoods"):
        objective.score(params, extra, batch)


def test_pixels_are_hidden_independently():
    objective, *_ = made(form="masked", rate=0.3)
    batch = {"image": jnp.zeros((3000, 8, 8, 3))}
    hidden = np.asarray(views_of(objective, KEY, batch, jnp.int32(0))["hidden"])
    np.testing.assert_allclose(hidden.mean(0), 0.3, atol=5 * np.sqrt(0.21 / 3000))
    np.testing.assert_allclose(hidden.sum(1).var(), PIXELS * 0.21, rtol=0.15)  # the variance of a binomial number


def test_the_palette_is_fitted_once():
    objective, params, extra, _, inputs = made()
    rng = np.random.default_rng(1)
    true = rng.random((12, 3))
    rows = jnp.asarray(true[rng.integers(0, 12, (16, 16))], jnp.float32)
    update = jax.jit(objective.update)
    first = update(extra, params, (), rows, jnp.int32(0))
    points = rows.reshape(-1, 3)
    colors = np.asarray(clustering.assign(points, first["palette"]))
    assert float(jnp.square(points - first["palette"][colors]).sum(-1).mean()) < 0.01
    shares = (np.bincount(colors, minlength=12) + 1) / (len(colors) + 12)
    np.testing.assert_allclose(first["frequency"], shares, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, update(first, params, (), rows + 1, jnp.int32(1)), first)
    # If the first step is skipped, a later one clusters.
    jax.tree.map(np.testing.assert_array_equal, update(extra, params, (), rows, jnp.int32(3)), first)
    # The sampled pixels are different pixels of their image.
    flat = np.asarray(inputs["image"]).reshape(16, PIXELS, 3)
    for row, image in zip(np.asarray(inputs["sample"]), flat):
        places = [np.flatnonzero((image == pixel).all(1))[0] for pixel in row]
        assert len(set(places)) == 16


@pytest.mark.parametrize("layer", [None, 0, 2])
def test_features_are_means_of_a_normalised_state(layer):
    objective, params, extra, batch, _ = made(layer=layer)
    read = objective.read(jnp.asarray(nearest(batch, extra), jnp.int32))
    states = objective.model.apply({"params": params["encoder"]}, read, mask=objective.mask({}), states=True).states
    state = np.asarray(states[1 if layer is None else layer], np.float64)
    state = (state - state.mean(-1, keepdims=True)) / np.sqrt(state.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(objective.features(params, extra, batch)["pooled"], state.mean(1), rtol=1e-3, atol=1e-4)


def test_images_are_resized():
    objective, params, extra, batch, _ = made(augment={"name": "single", "size": 4})
    assert objective.model.config.max_len == 16
    log_prob, count = objective.score(params, extra, batch)
    assert log_prob.shape == (16,) and (count == 16).all()


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match=r"model\.vocab_size: 12 is less than the 13 token ids"):
        made(model={"vocab_size": 12})
    with pytest.raises(UserError, match=r"model\.readout_size: got 11, must be at least objective\.clusters, which is"):
        made(model={"tied": False, "readout_size": 11})
    with pytest.raises(UserError, match=r"objective\.layer: got 3, must be at most the 2 blocks"):
        made(layer=3)
    objective, params, extra, *_ = made()
    with pytest.raises(UserError, match=r"objective\.clusters: got 12, but the first batch gives 8 pixels, fewer than"):
        jax.eval_shape(lambda: objective.update(extra, params, (), jnp.zeros((2, 4, 3)), jnp.int32(0)))
    with pytest.raises(UserError, match=r"model\.name: image_gpt needs a model with blocks over tokens"):
        objectives.create({**tiny.config("image_gpt"), "model": {"name": "word_vectors"}}, tiny.SPEC)
    lstm = {**tiny.config("image_gpt"), "model": {"name": "rnn", "width": 16}}
    assert objectives.create(lstm, tiny.SPEC).model.config.vocab_size == 13
    lstm["objective"]["form"] = "masked"
    with pytest.raises(UserError, match=r"model\.name: RNN reads no later tokens, but the objective predicts tokens"):
        objectives.create(lstm, tiny.SPEC)
    spec = dataclasses.replace(tiny.SPEC, elements={"tokens": tiny.SPEC.elements["tokens"]})
    with pytest.raises(UserError, match="image_gpt needs images"):
        objectives.create(tiny.config("image_gpt"), spec)
