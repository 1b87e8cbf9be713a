"""Objectives that hide patches inside the encoder: SimMIM, MaskFeat and iBOT by their definitions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import loss_definitions as brute
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import objectives, views
from ssljax.base.errors import UserError
from ssljax.objectives.base import still, views_of
from ssljax.objectives.masked.adversary import hardest, order_loss

KEY = jax.random.key(5)


def made(name, **settings):
    """An objective, its variables, inputs, and outputs without dropout."""
    objective = dataclasses.replace(tiny.make(name).unwrapped, **settings)
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)  # heads and mask tokens begin as zeros
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), params)
    inputs = jax.jit(lambda batch: views_of(objective, KEY, batch, jnp.int32(0)))(batch)
    ctx = still(KEY, batch)
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    return objective, params, extra, inputs, outputs, ctx


def patches(images, size=4):
    """[B, N, size * size * C] by slices, in raster order."""
    _, h, w, _ = images.shape
    cuts = [images[:, y : y + size, x : x + size] for y in range(0, h, size) for x in range(0, w, size)]
    return np.stack([cut.reshape(len(images), -1) for cut in cuts], 1)


@pytest.mark.parametrize("error", ["l1", "l2"])
@pytest.mark.parametrize("target", ["pixels", "hog"])
def test_simmim_by_its_definition(target, error):
    objective, params, extra, inputs, outputs, ctx = made(
        "simmim", target=target, error=error, mask_ratio=0.5, adversary=None
    )
    images, mask = np.asarray(inputs["image"], np.float64), np.asarray(inputs["mask"], bool)
    if target == "pixels":
        wanted = patches((images - 0.5) / 0.25)
    else:  # four cells of 2 x 2 pixels, each with three channels of nine bins
        cells = np.asarray(views.hog(inputs["image"], 2), np.float64).reshape(len(images), 4, 4, 27)
        wanted = patches(cells, 2)
    total, count = 0.0, 0
    for row, patch in zip(*np.nonzero(mask)):
        difference = np.asarray(outputs["predicted"], np.float64)[row, patch] - wanted[row, patch]
        total, count = total + np.mean(np.abs(difference) if error == "l1" else difference**2), count + 1
    assert count == 2 * len(images)
    terms = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx).terms
    _, value, weight = terms[error]
    np.testing.assert_allclose(value / weight, total / count, rtol=1e-5)


def test_masked_pixels_are_not_seen():
    """Predictions do not depend on the pixels of masked patches, and do depend on the others."""
    objective, params, extra, inputs, outputs, ctx = made("simmim", target="pixels", mask_ratio=0.5, adversary=None)
    hidden = np.asarray(inputs["mask"], bool)
    for where, same in ((hidden, True), (~hidden, False)):
        cut = views.patchify(inputs["image"], 4)
        other = views.unpatchify(jnp.where(where[..., None], 1 - cut, cut), inputs["image"].shape[1:])
        after = jax.jit(objective.encode)(params, extra, {**inputs, "image": other}, ctx)
        assert np.allclose(after["predicted"], outputs["predicted"], atol=1e-6) == same


@pytest.mark.parametrize(
    ("name", "model", "settings", "message"),
    [
        ("simmim", {"mask_token": True}, {"mask_ratio": 0.9}, r"mask_ratio: got 0\.9, which hides 4 of 4 patches"),
        (
            "simmim",
            {"mask_token": True, "patch_size": 1},
            {"target": "hog"},
            r"model\.patch_size: got 1, must be even, since objective\.target is 'hog'",
        ),
    ],
)
def test_settings_that_do_not_fit(name, model, settings, message):
    groups = tiny.config(name)
    groups = {"model": {**groups["model"], **model}, "objective": {**groups["objective"], **settings}}
    with pytest.raises(UserError, match=message):
        objectives.create(groups, tiny.SPEC)


@pytest.mark.parametrize("name", ["simmim", "ibot"])
def test_models_that_cannot_hide_patches(name):
    groups = tiny.config(name)
    with pytest.raises(UserError, match=r"model\.mask_token: got false, must be true"):
        objectives.create({**groups, "model": {**groups["model"], "mask_token": False}}, tiny.SPEC, 10)
    with pytest.raises(UserError, match=r"model\.name: this model has no patches that could be masked"):
        objectives.create({**groups, "model": {"name": "resnet", "preset": "micro"}}, tiny.SPEC, 10)


def centred(extra):
    """Extra state with centres that are not zero."""
    values = jnp.linspace(-1.0, 1.0, extra["center"].shape[-1])
    return {**extra, "center": values, "patch_center": values[::-1]}


def test_ibot_by_its_definition():
    objective, params, extra, inputs, outputs, ctx = made("ibot", patch_weight=0.7)
    extra = centred(extra)
    mask = np.asarray(inputs["mask"], bool)
    assert 0 < mask.any(-1).mean() < 1  # some crops hide patches, and some do not
    found = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx)
    cold, hot = objective.student_temperature, float(objective._teacher_temperature(ctx.step))
    arrays = [np.asarray(outputs[part], np.float64) for part in ("patches", "taught")]
    flat = [x.reshape(-1, *x.shape[2:]) for x in (*arrays, mask)]
    center = np.asarray(extra["patch_center"], np.float64)
    right = brute.ibot(*flat, center, np.ones(len(flat[0])), cold, hot)
    scale, value, weight = found.terms["ibot"]
    assert scale == 0.7 and set(found.terms) == {"dino", "ibot"}
    np.testing.assert_allclose(value, np.sum(right), rtol=1e-5)
    assert float(weight) == len(flat[0])  # crops that hide nothing count with 0, as in the authors' code
    entropy, number = found.metrics["patch_entropy"]
    shares = [brute.softmax((row - center) / hot) for row in arrays[1].reshape(-1, arrays[1].shape[-1])]
    np.testing.assert_allclose(entropy / number, np.mean([-(q * np.log(q)).sum() for q in shares]), rtol=1e-4)
    np.testing.assert_allclose(found.sums["patch_center"], arrays[1].mean((1, 2)).sum(0), rtol=1e-4, atol=1e-5)


def test_ibot_without_masks_is_dino():
    objective, params, extra, inputs, outputs, ctx = made("ibot", mask_probability=0.0)
    assert not np.any(inputs["mask"])
    found = jax.jit(objective.loss)(params, extra, outputs, inputs, ctx)
    assert float(found.terms["ibot"][1]) == 0
    dino = dataclasses.replace(
        tiny.make("dino").unwrapped,
        **{f.name: getattr(objective, f.name) for f in dataclasses.fields(tiny.make("dino").unwrapped)},
    )
    other = jax.jit(dino.encode)(params, extra, inputs, ctx)
    np.testing.assert_allclose(outputs["student"], other["student"], atol=1e-5)
    np.testing.assert_allclose(outputs["teacher"], other["teacher"], atol=1e-5)


def test_teacher_sees_all_patches():
    objective, params, extra, inputs, outputs, ctx = made("ibot")
    shown = {**inputs, "mask": jnp.zeros_like(inputs["mask"])}
    after = jax.jit(objective.encode)(params, extra, shown, ctx)
    np.testing.assert_allclose(after["taught"], outputs["taught"], atol=1e-6)
    assert np.abs(after["patches"] - outputs["patches"]).max() > 1e-4


def test_centre_of_patches_is_a_moving_average():
    objective, params, extra, _, _, _ = made("ibot", centering=0.8)
    extra = centred(extra)
    sums = {"center": jnp.ones_like(extra["center"]), "patch_center": 3 * jnp.ones_like(extra["center"])}
    after = objective.update(extra, params, {**sums, "weight": jnp.float32(2)}, (), jnp.int32(0))
    np.testing.assert_allclose(after["patch_center"], 0.8 * extra["patch_center"] + 0.2 * 1.5, atol=1e-6)


PAST = views.PartMasking(kinds=("future",), near=0.25)


@pytest.mark.parametrize("name", ["mae", "simmim", "i_jepa"])
def test_the_future_is_predicted_from_the_recent_past(name):
    """Patches before the recent past are neither seen nor predicted."""
    groups = tiny.config(name)
    groups["model"] |= {"patch_size": 2, "dropout": 0.0, "drop_path": 0.0}
    groups["objective"].pop("adversary", None)
    groups["objective"]["masking"] = {"name": "parts", "kinds": ("future",), "near": 0.25}
    groups["objective"] |= {"context": 0.5} if name == "i_jepa" else {"mask_ratio": 0.5}
    objective = objectives.create(groups, tiny.SPEC, tiny.STEPS).unwrapped
    assert objective.masking == PAST
    objective = objective.held_out()
    batch = objective.prepare(tiny.batch())
    params, extra = nn.unbox(jax.jit(objective.init)(KEY, batch))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), params)

    def slope(images):
        inputs = views_of(objective, KEY, {"image": images}, jnp.int32(0))
        outputs = objective.encode(params, extra, inputs, still(KEY, batch))
        found = outputs if name == "mae" else outputs["predicted"]
        return jnp.sum(jnp.sin(3 * found)), inputs

    found, inputs = jax.jit(jax.grad(slope, has_aux=True))(batch["image"])
    column = np.abs(np.asarray(found)).max((0, 1, 3)).reshape(4, 2).max(1)  # of each column of patches
    assert column[1] > 0 and (column[[0, 2, 3]] == 0).all()
    target = np.asarray(inputs["targets"][:, 0] if name == "i_jepa" else inputs["mask"]).reshape(-1, 4, 4)
    assert (target == np.array([False, False, True, True])).all()


def test_the_share_of_hidden_patches_grows_with_the_step():
    groups = tiny.config("simmim")
    groups["model"] |= {"patch_size": 2}
    groups["objective"] |= {
        "mask_ratio": 0.5,
        "adversary": None,
        "masking": {"name": "blocks", "grows": ("ratio",), "start": 0.25},
    }
    objective = objectives.create(groups, tiny.SPEC, 10).unwrapped
    assert objective.total_dependent
    count = lambda step: views_of(objective, KEY, tiny.batch(), jnp.int32(step))["mask"].sum(1)  # noqa: E731
    assert [int(count(step)[0]) for step in (0, 5, 9)] == [2, 8, 8]


def test_held_out_losses_and_pictures_have_the_last_masks():
    groups = tiny.config("simmim")
    groups["model"] |= {"patch_size": 2}
    groups["objective"] |= {"mask_ratio": 0.5, "masking": {"name": "blocks", "grows": ("ratio", "size"), "start": 0.25}}
    objective = objectives.create(groups, tiny.SPEC, 10).unwrapped
    held_out = objective.held_out()
    assert held_out.masking == views.BlockMasking(start=0.25) and not held_out.total_dependent
    teacher = {"schedule": "cosine"}
    groups["objective"] |= {"masking": {"name": "random"}, "adversary": {"grows": False, "teacher": teacher}}
    assert objectives.create(groups, tiny.SPEC, 10).unwrapped.total_dependent
    inputs = views_of(held_out, KEY, tiny.batch(), jnp.int32(0))
    assert (inputs["mask"].sum(1) == 8).all() and (inputs["hard_share"] == 1).all()
    for name in ("mae", "i_jepa"):
        groups = tiny.config(name)
        groups["model"] |= {"patch_size": 2}
        groups["objective"]["masking"] = {"name": "blocks", "grows": ("size",)}
        assert objectives.create(groups, tiny.SPEC, 10).unwrapped.held_out().masking == views.BlockMasking()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 0.99}, r"objective\.context: got 0\.99, which is 16 of 16 patches, must be at least 1 and leave"),
        ({"context": 0.01}, r"objective\.context: got 0\.01, which is 0 of 16 patches"),
        ({"context": 0.5, "targets": 2}, r"objective\.targets: has no effect with objective\.masking"),
    ],
)
def test_masks_of_i_jepa_that_do_not_fit(settings, message):
    groups = tiny.config("i_jepa")
    groups["objective"] |= {"masking": {"name": "random"}, **settings}
    with pytest.raises(UserError, match=message):
        objectives.create(groups, tiny.SPEC, tiny.STEPS)


@pytest.mark.parametrize("name", ["mae", "i_jepa"])
def test_encoders_of_a_fixed_number_of_patches_refuse_a_growing_ratio(name):
    groups = tiny.config(name)
    groups["objective"]["masking"] = {"name": "random", "grows": ("ratio",)}
    with pytest.raises(UserError, match=r"objective\.masking\.grows: got 'ratio', but the encoder of this objective"):
        objectives.create(groups, tiny.SPEC, tiny.STEPS)


def test_the_hardest_patches_replace_a_share_of_the_masked_ones():
    """For each share: the hardest of all patches are masked, the others are a random part of the given mask."""
    rng, n, count = np.random.default_rng(0), 16, 6
    mask = np.array([rng.permutation(np.arange(n) < count) for _ in range(300)])
    difficulty, u = rng.normal(size=(300, n)), rng.random((300, n))
    for share, hard in ((0.0, 0), (0.3, 2), (0.5, 3), (1.0, 6)):
        made = np.asarray(hardest(*map(jnp.asarray, (mask, difficulty, np.full(300, share), u))))
        assert (made.sum(1) == count).all()
        for row in range(300):
            first = np.argsort(-difficulty[row])[:hard]
            assert made[row, first].all()
            rest = set(np.flatnonzero(made[row])) - set(first)
            assert rest <= set(np.flatnonzero(mask[row]))
    np.testing.assert_array_equal(np.asarray(hardest(mask, difficulty, np.zeros(300), u)), mask)


@pytest.mark.parametrize("ties", [False, True])
def test_the_loss_of_the_order_by_its_definition(ties):
    rng = np.random.default_rng(1)
    difficulty, errors = rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    if ties:
        errors = np.round(errors)
    mask = np.array([[1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    for row in range(3):
        pairs = [(i, j) for i in range(6) for j in range(6) if mask[row, i] and mask[row, j]]
        pairs = [(i, j) for i, j in pairs if errors[row, i] > errors[row, j]]
        value = lambda d: np.mean([np.log1p(np.exp(d[j] - d[i])) for i, j in pairs]) if pairs else 0.0  # noqa: B023, E731
        one = lambda d: order_loss(d[None], jnp.asarray(errors[row : row + 1]), jnp.asarray(mask[row : row + 1]))  # noqa: B023, E731
        found = one(jnp.asarray(difficulty[row], jnp.float32))
        np.testing.assert_allclose(found.losses[0], value(difficulty[row]), rtol=1e-5, atol=1e-7)
        right = np.mean([difficulty[row, i] > difficulty[row, j] for i, j in pairs]) if pairs else 0.0
        np.testing.assert_allclose(found.right[0], right, rtol=1e-6)
        slope = jax.grad(lambda d, one=one: one(d).losses[0])(jnp.asarray(difficulty[row], jnp.float32))
        for i in range(6):
            step = 1e-6 * np.eye(6)[i]
            wanted = (value(difficulty[row] + step) - value(difficulty[row] - step)) / 2e-6
            np.testing.assert_allclose(slope[i], wanted, rtol=1e-4, atol=1e-6)


def test_an_adversary_hides_what_its_teacher_finds_hard():
    objective, params, extra, inputs, _, ctx = made("simmim")
    assert float(inputs["hard_share"][0]) == 0  # at the start of the run, the mask is that of the strategy
    inputs = {**inputs, "hard_share": jnp.ones(tiny.BATCH)}
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    teacher = extra["teacher"]
    tokens = objective.model.apply({"params": teacher["encoder"]}, objective.pixels(inputs["image"])).tokens
    # The teacher's head begins with zeros: all patches are equally hard, and the choice is random.
    assert (jax.tree.leaves(teacher["difficulty"])[0] == 0).all()
    assert set(np.argmin(outputs["mask"], 1).tolist()) == {0, 1, 2, 3}
    kernel = np.random.default_rng(2).normal(size=(32, 1))
    linear = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(1)}
    extra = {"teacher": {**teacher, "difficulty": {"linear": linear}}}
    outputs = jax.jit(objective.encode)(params, extra, inputs, ctx)
    expected = np.asarray(tokens @ kernel)[..., 0]
    least = np.argmin(expected, 1)
    np.testing.assert_array_equal(np.argmin(outputs["mask"], 1), least)  # all but the easiest
    terms = objective.loss(params, extra, outputs, inputs, ctx).terms
    assert set(terms) == {"l1", "order"} and terms["order"][2] == tiny.BATCH
    after = objective.update(extra, params, (), (), jnp.int32(0))["teacher"]
    old, new, student = (jax.tree.leaves(x["encoder"])[0] for x in (teacher, after, params))
    np.testing.assert_allclose(new, 0.999 * old + 0.001 * student, rtol=1e-4, atol=1e-6)
