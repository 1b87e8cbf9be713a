"""The registered pipelines: shapes, dependence on keys, configuration."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ssljax import views
from ssljax.base.errors import UserError
from ssljax.base.schema import build_named

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).random((6, 12, 12, 3)).astype(np.float32)
OFF = {"flip": 0, "jitter": 0, "gray": 0, "blur": 0}
PIPELINES = [name for name in views.REGISTRY if name not in ("graph_views", "audio_views")]  # of images
EVERYTHING = {"rotate": 0.5, "solarize": 0.5, "cutout": 0.5, "noise": 0.5}


def built(name, **config):
    return build_named(views.REGISTRY, {"name": name, **config}, "objective.views")


def make(name, **config):
    """(one key, images, ...) -> views; row i has the key `fold_in(key, i)`."""
    pipeline = built(name, **config)
    return lambda key, images, *aspect: pipeline(views.example_keys(key, len(images)), images, *aspect)


def view(name, images=IMAGES, **config):
    return jax.jit(make(name, **config))(KEY, images)


@pytest.fixture(scope="module")
def everything():
    config = {name: {"augment": EVERYTHING} for name in PIPELINES}
    config["single"]["augment"] = dataclasses.asdict(views.ContrastiveAugment()) | EVERYTHING
    config["single"]["crop_scale"] = [0.2, 1.0]
    return {name: jax.jit(make(name, **config[name])) for name in PIPELINES}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_row_depends_on_key_and_position_only(everything, name):
    whole, again, other = (everything[name](key, IMAGES) for key in (KEY, KEY, jax.random.key(4)))
    part = everything[name](KEY, IMAGES[:3])
    for w, a, o, p in zip(*map(jax.tree.leaves, (whole, again, other, part))):
        np.testing.assert_array_equal(w, a)
        # Another batch size gives another program, whose sums may be ordered differently.
        np.testing.assert_allclose(w[:3], p, atol=1e-5)
        assert (np.abs(w - o) > 1e-3).mean() > 0.5
        assert w.dtype == jnp.float32 and w.min() >= 0 and w.max() <= 1


def test_sharded_views_need_no_communication():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    split = NamedSharding(mesh, PartitionSpec("data"))
    pipeline = make("two_views", augment={"blur": 0})
    compiled = jax.jit(pipeline, in_shardings=(None, split), out_shardings=split).lower(KEY, IMAGES).compile()
    assert not re.search("all-gather|all-to-all|all-reduce|collective-permute", compiled.as_text())
    np.testing.assert_allclose(compiled(KEY, jax.device_put(IMAGES, split)), jax.jit(pipeline)(KEY, IMAGES), atol=1e-5)


@pytest.mark.parametrize("name", PIPELINES)
def test_equal_images_get_different_views(everything, name):
    same = np.tile(IMAGES[:1], (6, 1, 1, 1))
    for leaf in jax.tree.leaves(everything[name](KEY, same)):
        rows = leaf.reshape(-1, *leaf.shape[-3:]) if name != "single" else leaf
        distance = np.abs(rows[:, None] - rows[None]).mean((2, 3, 4))
        assert (distance[~np.eye(len(rows), dtype=bool)] > 1e-3).all()


def test_shapes():
    def shape(name, **config):
        return jax.tree.map(lambda x: x.shape, jax.eval_shape(make(name, **config), KEY, IMAGES))

    assert shape("single") == (6, 12, 12, 3)
    assert shape("single", size=8) == (6, 8, 8, 3)
    assert shape("two_views", size=8) == (6, 2, 8, 8, 3)
    assert shape("multi_crop") == {"global": (6, 2, 12, 12, 3), "local": (6, 8, 6, 6, 3)}
    assert shape("multi_crop", global_crops=1, local_crops=3, size=8, local_size=5) == {
        "global": (6, 1, 8, 8, 3),
        "local": (6, 3, 5, 5, 3),
    }
    assert shape("multi_crop", local_crops=0) == {"global": (6, 2, 12, 12, 3)}


def test_single_is_the_identity_by_default():
    np.testing.assert_array_equal(view("single"), IMAGES)
    np.testing.assert_allclose(view("single", size=6), views.resize(IMAGES, 6), atol=1e-6)
    np.testing.assert_array_equal(view("two_views", crop_scale=[1, 1], augment=OFF)[:, 1], IMAGES)


@pytest.mark.parametrize("operation", ["flip", "rotate", "jitter", "gray", "blur", "solarize", "cutout", "noise"])
def test_each_operation_has_a_field(operation):
    on = make("single", augment={operation: 1.0})
    assert (np.abs(on(KEY, IMAGES) - IMAGES) > 1e-3).any()
    # The program of an operation that is off does not contain it.
    count = lambda v: len(jax.make_jaxpr(v)(KEY, IMAGES).eqns)  # noqa: E731
    assert count(make("single", augment={operation: 0.0})) == count(make("single")) < count(on)


def test_switching_one_operation_off_keeps_the_draws_of_the_others():
    with_gray = view("single", crop_scale=[0.3, 0.9], augment={"flip": 0.5, "gray": 1.0})
    without = view("single", crop_scale=[0.3, 0.9], augment={"flip": 0.5})
    np.testing.assert_allclose(with_gray, without @ jnp.float32([0.299, 0.587, 0.114])[:, None].repeat(3, 1), atol=1e-5)


def test_second_changes_the_second_view_only():
    same, different = (view("two_views", augment=OFF, **more) for more in ({}, {"second": {**OFF, "solarize": 1.0}}))
    np.testing.assert_allclose(same[:, 0], different[:, 0], atol=1e-6)
    np.testing.assert_allclose(np.where(same[:, 1] >= 0.5, 1 - same[:, 1], same[:, 1]), different[:, 1], atol=1e-6)
    crops = view("multi_crop", augment=OFF, second={**OFF, "gray": 1.0}, local={**OFF, "gray": 1.0})
    gray = [np.ptp(x, axis=-1).max() < 1e-6 for x in (crops["global"][:, 0], crops["global"][:, 1], crops["local"])]
    assert gray == [False, True, True]


def test_multi_crop_has_the_three_recipes_of_dino():
    crops = built("multi_crop")
    recipes = (crops.augment, crops.second, crops.local)
    assert [(r.blur, r.solarize) for r in recipes] == [(1.0, 0.0), (0.1, 0.2), (0.5, 0.0)]
    shared = {
        "flip": 0.5,
        "jitter": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "gray": 0.2,
    }
    assert all(dataclasses.asdict(r).items() >= shared.items() for r in recipes)
    changed = built("multi_crop", second={"flip": 0.0})
    assert changed.second == dataclasses.replace(crops.second, flip=0.0) and changed.local == crops.local


def test_crops_without_a_recipe_use_the_first():
    crops = view("multi_crop", augment={**OFF, "gray": 1.0}, second=None, local=None)
    assert all(np.ptp(np.asarray(x), axis=-1).max() < 1e-6 for x in crops.values())


def test_each_kind_of_crop_has_its_scale():
    # On a horizontal ramp the range of values in a crop equals its width.
    ramp = np.tile(np.linspace(0, 1, 32, dtype=np.float32)[None, None, :, None], (64, 32, 1, 1))
    scales = {"global_scale": [0.6, 1.0], "local_scale": [0.05, 0.2]}
    crops = view("multi_crop", ramp, augment={**OFF, "crop_ratio": [1, 1]}, second=None, local=None, **scales)
    width = {name: np.square(np.ptp(np.asarray(x), axis=(2, 3, 4))) for name, x in crops.items()}
    assert width["global"].min() > 0.5 and width["local"].max() < 0.2


def test_jitter_strength_may_be_traced():
    pipeline = built("single", augment={"jitter": 1.0})

    def stronger(strength):
        augment = dataclasses.replace(pipeline.augment, jitter_strength=strength)
        return dataclasses.replace(pipeline, augment=augment)(views.example_keys(KEY, len(IMAGES)), IMAGES)

    out = jax.jit(jax.vmap(stronger))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(out[0], IMAGES, atol=1e-5)
    np.testing.assert_allclose(out[1], stronger(0.5), atol=1e-5)


@pytest.mark.parametrize(
    "name, config, message",
    [
        ("two_views", {"augment": {"flipp": 1}}, "objective.views.augment.flipp: unknown key; did you mean 'flip'"),
        ("two_views", {"augment": {"gray": 1.5}}, "objective.views.augment.gray: got 1.5, must be <= 1"),
        ("two_views", {"crop_scale": [0.9, 0.1]}, "objective.views.crop_scale: got (0.9, 0.1), must be (low, high)"),
        ("multi_crop", {"local_scale": [0.0, 0.1]}, "objective.views.local_scale: got 0.0, must be > 0"),
        ("multi_crop", {"local": {"blur_sigma": [2, 1]}}, "objective.views.local"),
        ("two_crop", {}, "unknown views 'two_crop'"),
    ],
)
def test_errors_in_a_configuration_are_one_line(name, config, message):
    with pytest.raises(UserError) as error:
        make(name, **config)
    assert message in str(error.value) and "\n" not in str(error.value)
