"""CPC: the loss and its gradients by their definition, the parts, what a context sees, and the bound of information."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import losses, objectives
from ssljax.base.errors import UserError
from ssljax.objectives.base import still, views_of

KEY = jax.random.key(5)
TEXT = {"name": "bert", "pool": "mean", "preset": None, "width": 32, "depth": 1, "heads": 4}


def made(model=None, **settings):
    groups = tiny.config("cpc")
    groups["objective"].update(settings)
    groups["model"] = model or {**groups["model"], "dropout": 0.0, "drop_path": 0.0}
    objective = objectives.create(groups, tiny.SPEC, tiny.STEPS).unwrapped
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    return objective, params, extra, batch, inputs


def outputs_of(seed, examples, rows, columns, width, context, padded=False):
    rng = np.random.default_rng(seed)
    valid = np.ones((examples, rows * columns), bool)
    if padded:
        valid &= np.arange(rows * columns) < rng.integers(2, rows * columns + 1, examples)[:, None]
    latents = rng.normal(size=(examples, rows * columns, width)) * valid[..., None]
    text = valid.astype(int)
    if padded:  # two texts in some rows
        text += valid & (np.arange(rows * columns) >= rng.integers(4, rows * columns, examples)[:, None])
    return {"latents": latents, "contexts": rng.normal(size=(examples, rows * columns, context)), "text": text}


def by_definition(outputs, kernel, ahead, columns):
    """The mean loss, the share of right answers, the bound, and the gradients of the loss in float64."""
    z, c, text = outputs["latents"], outputs["contexts"], outputs["text"]
    count, width = z.shape[1], z.shape[2]
    pairs = [  # of each step: (example, place of the context, place of the part)
        [(b, t, t + (k + 1) * columns) for b in range(len(z)) for t in range(count - (k + 1) * columns)]
        for k in range(ahead)
    ]
    pairs = [[p for p in step if text[p[0], p[1]] == text[p[0], p[2]] > 0] for step in pairs]
    total, value, right, bound = sum(map(len, pairs)), 0.0, 0, 0.0
    gradients = {name: np.zeros_like(x) for name, x in (("latents", z), ("contexts", c), ("kernel", kernel))}
    for k, step in enumerate(pairs):
        matrix = kernel[:, k * width : (k + 1) * width]
        own = 0.0
        for i, (b, t, _) in enumerate(step):
            scores = np.array([c[b, t] @ matrix @ z[e, place] for e, _, place in step]) / np.sqrt(width)
            share = np.exp(scores - scores.max())
            share /= share.sum()
            own -= np.log(share[i])
            right += scores.argmax() == i
            share[i] -= 1
            for (e, _, place), slope in zip(step, share / total / np.sqrt(width)):
                gradients["contexts"][b, t] += slope * matrix @ z[e, place]
                gradients["latents"][e, place] += slope * matrix.T @ c[b, t]
                gradients["kernel"][:, k * width : (k + 1) * width] += slope * np.outer(c[b, t], z[e, place])
        value += own
        bound += len(step) * np.log(len(step)) - own if step else 0.0
    return value / total, right / total, bound / total, gradients


@pytest.mark.parametrize("form", ["dense", "chunked"])
@pytest.mark.parametrize("padded", [False, True])
def test_loss_and_gradients_by_their_definition(form, padded):
    objective = dataclasses.replace(tiny.make("cpc").unwrapped, form=form)  # 4 x 4 parts of 2 x 2 pixels, 2 steps
    outputs = outputs_of(0, 3, 4, 4, 32, 32, padded)
    kernel = np.random.default_rng(1).normal(size=(32, 64)) * 0.3
    value, right, bound, gradients = by_definition(outputs, kernel, 2, 4)

    def loss(latents, contexts, kernel):
        made = {"latents": latents, "contexts": contexts, "text": jnp.asarray(outputs["text"], jnp.float32)}
        found = objective.loss({"steps": {"linear_0": {"kernel": kernel}}}, {}, made, {}, still(KEY, tiny.batch()))
        _, total, weight = found.terms["info_nce"]
        return total / weight, found.metrics

    arrays = [jnp.asarray(x, jnp.float32) for x in (outputs["latents"], outputs["contexts"], kernel)]
    (got, metrics), slopes = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arrays)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    np.testing.assert_allclose(np.divide(*metrics["accuracy"]), right, rtol=1e-6)
    np.testing.assert_allclose(np.divide(*metrics["mi_bound"]), bound, rtol=1e-4, atol=1e-5)
    for slope, name in zip(slopes, gradients):
        scale = np.abs(gradients[name]).max()
        np.testing.assert_allclose(slope / scale, gradients[name] / scale, atol=2e-5)


def test_parts_of_an_image_are_in_raster_order():
    objective, *_, batch, _ = made(part=4, stride=2, ahead=2)
    image = np.asarray(batch["image"])
    parts = objective.cut(batch)["image"]
    assert objective.grid((8, 8)) == (3, 3) and parts.shape == (16, 9, 4, 4, 3)
    for n in range(9):
        y, x = 2 * (n // 3), 2 * (n % 3)
        np.testing.assert_array_equal(parts[:, n], image[:, y : y + 4, x : x + 4])


def test_parts_of_a_text_and_their_padding():
    objective, params, extra, batch, inputs = made(TEXT, part=3, ahead=2)
    parts = objective.cut(inputs)
    assert set(parts) == {"tokens", "segment_ids"} and parts["tokens"].shape == (16, 4, 3)
    np.testing.assert_array_equal(parts["tokens"].reshape(16, 12), batch["tokens"])
    outputs = objective.encode(params, extra, inputs, still(KEY, batch))
    valid = np.asarray(batch["segment_ids"]).reshape(16, 4, 3).any(-1)
    segments = np.asarray(batch["segment_ids"]).reshape(16, 4, 3)
    first = np.array([[next((s for s in part if s), 0) for part in row] for row in segments])
    np.testing.assert_array_equal(outputs["text"], first)
    assert (segments != first[..., None])[valid].any()  # some parts have tokens of a second text or padding
    assert (np.asarray(outputs["latents"])[~valid] == 0).all() and not valid.all()
    found = objective.features(params, extra, batch)
    row = int(np.argmin(valid.sum(1)))
    np.testing.assert_allclose(
        found["pooled"][row], np.asarray(outputs["latents"])[row][valid[row]].mean(0), rtol=1e-4, atol=1e-6
    )


def packed():
    """Rows of 12 tokens with texts of 4 and 5 tokens and padding: parts of 3 tokens of the texts 1, 1, 2, 0 or 2."""
    segments = np.array([[1] * 4 + [2] * 5 + [0] * 3, [1] * 5 + [2] * 7])
    tokens = np.random.default_rng(7).integers(5, 60, (2, 12))
    return {"tokens": jnp.asarray(tokens, jnp.int32), "segment_ids": jnp.asarray(segments, jnp.int32)}


def test_texts_of_a_packed_row_do_not_see_each_other():
    objective, params, extra, *_ = made(TEXT, part=3, ahead=2)
    batch = packed()
    encode = lambda batch: objective.encode(params, extra, objective.views(None, batch, 0), still(KEY, batch))  # noqa: E731
    found = encode(batch)
    np.testing.assert_array_equal(found["text"], [[1, 1, 2, 0], [1, 1, 2, 2]])
    moved = encode({**batch, "tokens": batch["tokens"].at[:, 5:].set(9)})  # tokens of the second texts
    for name in ("latents", "contexts"):
        np.testing.assert_array_equal(found[name][:, :2], moved[name][:, :2])
        assert (np.abs(found[name] - moved[name])[:, 2].max(-1) > 1e-4).all()
    # A context of the second text sees no part of the first.
    moved = encode({**batch, "tokens": batch["tokens"].at[:, :3].set(9)})
    np.testing.assert_array_equal(found["contexts"][:, 2:], moved["contexts"][:, 2:])
    _, _, count = objective.loss(params, extra, found, {}, still(KEY, batch)).terms["info_nce"]
    assert count == 3  # one step ahead: 1-1 in both rows, 2-2 in the second; no two steps within a text


def test_padding_of_a_sound_is_no_part():
    model = {"name": "ast", "preset": None, "width": 32, "depth": 1, "heads": 4, "patch_size": 4, "strides": [4, 4]}
    model["spectrogram"] = {"mels": 8, "window": 0.02, "hop": 0.01}
    elements = {"audio": {"shape": [2500], "dtype": "float32"}, "audio_length": {"shape": [], "dtype": "int32"}}
    spec = dataclasses.replace(tiny.SPEC, elements=elements, sample_rate=8000)
    settings = {"name": "cpc", "part": 6, "ahead": 2, "context": {"width": 32, "depth": 1, "heads": 2}}
    objective = objectives.create({"model": model, "objective": settings}, spec).unwrapped
    rng, lengths = np.random.default_rng(0), np.array([2500, 960, 961])
    audio = rng.normal(size=(3, 2500)) * (np.arange(2500) < lengths[:, None])
    batch = {"audio": jnp.asarray(audio, jnp.float32), "audio_length": jnp.asarray(lengths, jnp.int32)}
    batch = objective.prepare(batch)
    assert batch["spectrogram"].shape == (3, 30, 8)  # frames of 160 samples, 80 apart: 5 parts of 6 frames
    params, extra = nn.unbox(objective.init(KEY, batch))
    found = objective.encode(params, extra, objective.views(None, batch, 0), still(KEY, batch))
    np.testing.assert_array_equal(found["text"], [[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    features = objective.features(params, extra, batch)
    np.testing.assert_allclose(features["pooled"][1], found["latents"][1, :2].mean(0), rtol=1e-4, atol=1e-6)


def test_a_latent_sees_its_part_and_a_context_no_later_part():
    objective, params, extra, batch, inputs = made()
    moved = {"image": inputs["image"].at[:, 2:4, 4:6].add(0.5)}  # the part in row 1 and column 2: number 6
    encode = jax.jit(objective.encode)
    before, after = (encode(params, extra, x, still(KEY, batch)) for x in (inputs, moved))
    for name, changed in (("latents", [6]), ("contexts", range(6, 16))):
        difference = np.abs(np.asarray(before[name] - after[name])).max((0, 2)) > 1e-6
        assert np.flatnonzero(difference).tolist() == list(changed)


@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_the_bound_is_below_the_information_of_gaussians_and_reaches_it(correlation):
    """I = -log(1 - rho^2) / 2 for each pair of numbers; the best scores are log p(y | x) / p(y)."""
    rng, dims, count, r = np.random.default_rng(2), 2, 1024, correlation
    information = -dims * np.log(1 - r**2) / 2
    bounds = []
    for _ in range(20):
        x = rng.normal(size=(count, dims))
        y = r * x + np.sqrt(1 - r**2) * rng.normal(size=(count, dims))
        scale = 1 / (1 - r**2)
        query = np.concatenate([-(r**2) * scale / 2 * x**2, np.ones_like(x), r * scale * x], 1)
        keys = np.concatenate([np.ones_like(y), -(r**2) * scale / 2 * y**2, y], 1)
        loss = losses.info_nce(jnp.asarray(query), jnp.asarray(keys), temperature=1.0, normalize=False)
        bounds.append(np.log(count) - float(loss))
    error = np.std(bounds, ddof=1) / np.sqrt(20)
    assert np.mean(bounds) < information + 4 * error
    np.testing.assert_allclose(np.mean(bounds), information, atol=0.05)


def test_the_bound_saturates_at_the_log_of_the_number_of_parts():
    """With 20 nats of information and the best scores, the bound is at most log N, and near it."""
    rng, dims, r = np.random.default_rng(3), 8, 0.9966
    assert -dims * np.log(1 - r**2) / 2 > 19
    for count in (8, 64, 512):
        x = rng.normal(size=(count, dims))
        y = r * x + np.sqrt(1 - r**2) * rng.normal(size=(count, dims))
        scale = 1 / (1 - r**2)
        query = np.concatenate([-(r**2) * scale / 2 * x**2, np.ones_like(x), r * scale * x], 1)
        keys = np.concatenate([np.ones_like(y), -(r**2) * scale / 2 * y**2, y], 1)
        loss = float(losses.info_nce(jnp.asarray(query), jnp.asarray(keys), temperature=1.0, normalize=False))
        assert 0 <= loss < 0.02


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match=r"objective\.ahead: got 4, must be less than 4, the number of rows of parts"):
        made(ahead=4)
    with pytest.raises(
        UserError, match=r"objective\.ahead: got 12, must be less than 12, the number of parts of an ex"
    ):
        made(TEXT, part=1, ahead=12)
    with pytest.raises(UserError, match=r"objective\.part: got 9, must be at most 8, the size of an example"):
        made(part=9)
    spec = dataclasses.replace(tiny.SPEC, elements={"spectrogram": {"shape": [24, 16], "dtype": "float32"}})
    groups = {"model": {"name": "ast", "preset": "pico"}, "objective": {"name": "cpc", "part": 2, "ahead": 2}}
    with pytest.raises(UserError, match=r"objective\.part: got 2, must be at least 16, a patch"):
        objectives.create(groups, spec)
    with pytest.raises(UserError, match=r"model\.patch_size: 2 does not divide the image size 3x3"):
        made(part=3, ahead=1)
