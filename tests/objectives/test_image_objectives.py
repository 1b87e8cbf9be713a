"""Objectives over images: refusals, clipping, sharding and metrics."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny

from ssljax import losses, objectives
from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.config import load
from ssljax.objectives.base import Ctx, views_of
from ssljax.objectives.contrastive.clip import clipped
from ssljax.objectives.images import uniformity
from ssljax.train.state import abstract_variables, make_variables

CONFIGS = pathlib.Path(__file__).parents[2] / "configs/vision"


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("name", ["simclr", "classification", "mae"])
def test_mean_and_std_fit_the_channels(name, key):
    groups = tiny.config(name)
    groups["objective"][key] = [0.5, 0.5]
    with pytest.raises(UserError, match=rf"objective\.{key}: got 2 values .* 3 channels \(1 or 3 required\)"):
        objectives.create(groups, tiny.SPEC)
    for values in ([0.5], [0.5, 0.4, 0.3]):
        groups["objective"][key] = values
        assert getattr(objectives.create(groups, tiny.SPEC), key) == tuple(values)


# The parts of a fusion are tested alone.
WITH_IMAGES = [name for name in objectives.REGISTRY if "images" in tiny.make(name).inputs and name != "fusion"]


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_views_are_cropped_in_the_proportions_of_squeezed_pictures(name):
    """An aspect of 1 changes nothing; another one moves the crops."""
    objective = tiny.make(name)
    if objective.augment.crop_scale == (1.0, 1.0) if hasattr(objective.augment, "crop_scale") else False:
        objective = dataclasses.replace(
            objective, augment=dataclasses.replace(objective.augment, crop_scale=(0.2, 0.9))
        )

    def views(aspect):
        batch = tiny.batch()
        if aspect is not None:
            batch["aspect"] = jnp.full(tiny.BATCH, aspect)
            batch["unlabeled"]["aspect"] = jnp.full(2 * tiny.BATCH, aspect)
        batch = objective.prepare(batch)
        made = views_of(objective, jax.random.key(0), batch, jnp.int32(0))
        return [x for x in jax.tree.leaves(made) if x.ndim >= 4]

    for plain, square, wide in zip(views(None), views(1.0), views(2.0), strict=True):
        np.testing.assert_allclose(square, plain, atol=1e-5)
        assert np.abs(wide - plain).max() > 0.05


@pytest.mark.parametrize("label", [-1, 5, 9])
def test_a_label_outside_the_classes_gives_nan(label):
    objective = dataclasses.replace(tiny.make("classification"), mixup=0.0)
    wrong = tiny.batch() | {"label": tiny.batch()["label"].at[3].set(label)}
    target = views_of(objective, jax.random.key(0), wrong, jnp.int32(0))["target"]
    inputs = {"target": target, "image": None}
    ctx = Ctx(jax.random.key(0), jnp.int32(0), jnp.arange(tiny.BATCH), train=False)
    terms = objective.loss({}, {}, jnp.zeros((tiny.BATCH, 5)), inputs, ctx).terms
    assert np.isnan(terms["cross_entropy"][1])
    values, _ = losses.cross_entropy(jnp.zeros((tiny.BATCH, 5)), target, reduce=False)
    assert np.flatnonzero(np.isnan(values)).tolist() == [3]


@pytest.mark.parametrize(("ratio", "hidden"), [(0.9, 4), (0.1, 0)])
def test_a_mask_hides_some_patches_and_not_all(ratio, hidden):
    groups = tiny.config("mae")  # 8 x 8 pixels in patches of 4
    groups["objective"]["mask_ratio"] = ratio
    with pytest.raises(UserError, match=rf"objective\.mask_ratio: got {ratio}, which hides {hidden} of 4 patches"):
        objectives.create(groups, tiny.SPEC)


def test_swav_has_the_recipe_of_its_paper_for_all_crops():
    swav, dino = (schema.build_named(objectives.REGISTRY, {"name": n}, "objective").augment for n in ("swav", "dino"))
    assert (swav.global_crops, swav.local_crops) == (2, 6) and (dino.global_crops, dino.local_crops) == (2, 8)
    assert (swav.global_scale, swav.local_scale) == ((0.14, 1.0), (0.05, 0.14))
    recipe = dataclasses.asdict(swav.augment)
    expected = {"jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "blur": 0.5}
    assert recipe.items() >= expected.items() and recipe["solarize"] == 0
    assert swav.second is None and swav.local is None


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_no_crop_of_a_digit_is_mirrored(name):
    config, _ = load(f"{CONFIGS}/{name}.py:data=mnist")
    crops = config.objective.augment
    assert crops.augment.flip == 0 and crops.second is None and crops.local is None


def test_the_centre_is_split_like_the_prototypes_of_the_head():
    _, axes = abstract_variables(make_variables(tiny.make("dino"), tiny.batch()))
    assert axes.extra["center"] == axes.params["head"]["last_layer"]["kernel"][-1:] == ("prototypes",)


def test_a_scale_beyond_the_bound_is_clipped_but_has_a_gradient():
    value, slope = jax.value_and_grad(lambda s: clipped(jnp.exp(s), 100.0))(jnp.log(jnp.float32(400)))
    np.testing.assert_allclose([value, slope], [100, 100], rtol=1e-6)
    value, slope = jax.value_and_grad(lambda s: clipped(jnp.exp(s), 100.0))(jnp.log(jnp.float32(7)))
    np.testing.assert_allclose([value, slope], [7, 7], rtol=1e-6)


def test_the_scale_of_clip_returns_below_the_bound():
    # Contradictory pairs, for which a small scale has the lowest loss.
    objective = dataclasses.replace(tiny.make("clip"), max_scale=10.0)
    image = jnp.eye(4)
    outputs = {"image": image, "text": jnp.roll(image, 1, axis=0)}

    def loss(log_scale):
        result = objective.loss({"log_scale": log_scale}, {}, outputs, {}, None)
        return result.terms["clip"][1] / result.terms["clip"][2], result.metrics["logit_scale"][0]

    step = jax.jit(lambda s: (s - 0.1 * jax.grad(lambda s: loss(s)[0])(s), loss(s)[1]))
    log_scale, scales = jnp.log(jnp.float32(20)), []
    for _ in range(4):
        log_scale, scale = step(log_scale)
        scales.append(float(scale))
    np.testing.assert_allclose(scales[0], 10, rtol=1e-6)
    assert scales[-1] < 10


def test_uniformity_of_a_step_reads_the_first_rows_only():
    z = jax.random.normal(jax.random.key(0), (300, 4))
    np.testing.assert_array_equal(uniformity(z), losses.uniformity(z[:256]))
    np.testing.assert_array_equal(uniformity(z[:20]), losses.uniformity(z[:20]))
    assert "300,300" not in str(jax.make_jaxpr(uniformity)(z))


def test_the_alignment_of_dino_is_the_distance_of_the_large_crops():
    objective = tiny.make("dino")
    student = jax.random.normal(jax.random.key(0), (6, 4, 24))
    outputs = {"student": student, "teacher": student[:, :2]}
    ctx = objectives.base.Ctx(jax.random.key(0), jnp.int32(0), jnp.arange(6))
    result = objective.loss({}, {"center": jnp.zeros(24)}, outputs, {}, ctx)
    total, weight = result.metrics["alignment"]
    np.testing.assert_allclose(total / weight, losses.alignment(student[:, 0], student[:, 1]), rtol=1e-5)


WITH_DIGITS = [path for path in sorted(CONFIGS.glob("[!_]*.py")) if path.stem != "colorization"]  # digits are grey


@pytest.mark.parametrize("path", WITH_DIGITS, ids=lambda path: path.stem)
def test_digits_are_not_mirrored(path):
    """In no view of the configs for MNIST."""
    objective = load(f"{path}:data=mnist")[0].objective
    parts = [*objective._built.values()] if path.stem == "fusion" else [objective]
    recipes = [
        recipe
        for augment in (part.augment for part in parts)
        for recipe in (augment.augment, *(getattr(augment, name, None) for name in ("second", "local")))
    ]
    assert all(recipe.flip == 0 for recipe in recipes if recipe is not None)


def test_a_single_class_is_refused():
    groups = tiny.config("classification")
    with pytest.raises(UserError, match=r"objective\.name: the data have a single class, so there is nothing to tell"):
        objectives.create(groups, dataclasses.replace(tiny.SPEC, num_classes=1), tiny.STEPS)
