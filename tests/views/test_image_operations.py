"""Image operations against Pillow, SciPy and colorsys; their distributions on large samples."""

import colorsys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance, ImageOps

from ssljax import views
from ssljax.base.errors import UserError
from ssljax.views.geometry import random_boxes

RNG = np.random.default_rng(0)
MANY = 4000


def pictures(b, h, w, c=3):
    return RNG.random((b, h, w, c)).astype(np.float32)


def keys(n, seed=0):
    return views.example_keys(jax.random.key(seed), n)


def check_rate(changed, probability):
    """Asserts that the share of True entries equals the probability, within four standard errors."""
    assert abs(np.mean(changed) - probability) < 4 * np.sqrt(probability * (1 - probability) / len(changed)) + 1e-9


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 9), (16, 12), (25, 31)])
def test_resample_equals_pillow_bilinear_with_a_box(size):
    h, w, b = 16, 12, 5
    images = pictures(b, h, w)
    low = RNG.uniform(0, [h - 4, w - 4], (b, 2))
    extent = RNG.uniform(3, np.array([h, w]) - low)
    low[0], extent[0] = 0, (h, w)
    actual = jax.jit(views.resample, static_argnums=3)(images, jnp.float32(low), jnp.float32(extent), size)
    for i in range(b):
        (y, x), (dy, dx) = low[i], extent[i]
        for c in range(3):
            expected = Image.fromarray(images[i, :, :, c], mode="F").resize(
                size[::-1], Image.Resampling.BILINEAR, box=(x, y, min(x + dx, w), min(y + dy, h))
            )
            np.testing.assert_allclose(actual[i, :, :, c], np.asarray(expected), atol=1e-5)


def test_enlarging_is_linear_interpolation():
    images, low, extent, n = (
        pictures(2, 8, 8, 1),
        np.array([[1.3, 0.0], [2.0, 5.5]]),
        np.array([[5.2, 8], [6, 2.5]]),
        11,
    )
    actual = views.resample(images, jnp.float32(low), jnp.float32(extent), (n, n))
    for i in range(2):
        grid = [low[i, d] + (np.arange(n) + 0.5) * extent[i, d] / n - 0.5 for d in (0, 1)]
        expected = scipy.ndimage.map_coordinates(
            images[i, :, :, 0].astype(np.float64), np.meshgrid(*grid, indexing="ij"), order=1, mode="nearest"
        )
        np.testing.assert_allclose(actual[i, :, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (20, 60)])
def test_crop_boxes(shape):
    scale, ratio = (0.1, 0.6), (0.5, 1.5)
    low, extent = (np.asarray(x, np.float64) for x in random_boxes(keys(MANY), shape, scale, ratio))
    h, w = shape
    assert (low >= -1e-4).all() and (low + extent <= np.array(shape) + 1e-4).all()
    area, aspect = extent.prod(1) / (h * w), extent[:, 1] / extent[:, 0]
    fallback = np.isclose(extent[:, 0], h, atol=1e-4) & np.isclose(low[:, 0], 0, atol=1e-4)
    assert fallback.mean() < 0.05
    assert (area[~fallback] >= 0.1 - 1e-5).all() and (area[~fallback] <= 0.6 + 1e-5).all()
    assert (aspect >= 0.5 - 1e-4).all() and (aspect <= 1.5 + 1e-4).all()
    if shape == (32, 32):  # nearly all first draws fit: uniform area, uniform log aspect, centred position
        np.testing.assert_allclose(area.mean(), 0.35, atol=0.02)
        np.testing.assert_allclose(np.log(aspect).mean(), np.log(0.5 * 1.5) / 2, atol=0.05)
        np.testing.assert_allclose((low + extent / 2).mean(0), [16, 16], atol=0.4)
        np.testing.assert_allclose((low / (np.array(shape) - extent)).std(0), 12**-0.5, atol=0.02)


def test_without_a_fitting_box_the_largest_centred_box_is_used():
    low, extent = random_boxes(keys(3), (10, 20), (0.9, 1.0), (1.0, 1.2))
    np.testing.assert_allclose(extent, [[10, 12]] * 3, rtol=1e-5)
    np.testing.assert_allclose(low, [[0, 4]] * 3, atol=1e-5)


@pytest.mark.parametrize("ratio", [(0.5, 1.5), (1.0, 1.2)])
def test_crops_of_squeezed_pictures_are_those_of_the_pictures(ratio):
    """The boxes of pictures of 20 x 60, 48 x 16 and 30 x 30, which were squeezed into 32 x 24."""
    shapes, grid = np.array([[20, 60], [48, 16], [30, 30]]), np.array([32, 24])
    for row, shape in enumerate(shapes):
        expected = [np.asarray(x[row]) * grid / shape for x in random_boxes(keys(3), tuple(shape), (0.1, 0.9), ratio)]
        aspect = jnp.float32(shapes[:, 1] / shapes[:, 0])
        low, extent = random_boxes(keys(3), tuple(grid), (0.1, 0.9), ratio, aspect)
        np.testing.assert_allclose(low[row], expected[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(extent[row], expected[1], rtol=1e-4)


def test_the_central_square_of_a_squeezed_picture():
    """A ramp of 20 x 60, squeezed into 24 x 24: its central square goes from a third to two thirds of the width."""
    y, x = np.meshgrid((np.arange(24) + 0.5) / 24, (np.arange(24) + 0.5) / 24, indexing="ij")
    squeezed = jnp.float32(np.stack([y, x], -1)[None])
    square = np.asarray(views.centered({"image": squeezed, "aspect": jnp.float32([3.0])})["image"])[0]
    np.testing.assert_allclose(square[..., 0], y, atol=1e-5)
    np.testing.assert_allclose(square[..., 1], 1 / 3 + x / 3, atol=1e-5)
    assert "aspect" not in views.centered({"image": squeezed})


def test_flips_and_rotations_are_exact_and_have_the_given_rates():
    images = pictures(1, 3, 3, 1).repeat(MANY, 0)
    flipped = np.asarray(views.random_flip(keys(MANY), images, 0.3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == images).all((1, 2, 3))).all()
    check_rate(mirrored, 0.3)

    turned = np.asarray(views.random_rotate90(keys(MANY), images, 0.8))
    rates = [(turned == np.rot90(images, k, axes=(1, 2))).all((1, 2, 3)) for k in range(4)]
    assert np.sum(rates, 0).tolist() == [1] * MANY
    check_rate(rates[0], 0.4)
    for k in (1, 2, 3):
        check_rate(rates[k], 0.2)
    with pytest.raises(UserError, match="got images of 4 x 5, must be square"):
        views.random_rotate90(keys(1), pictures(1, 4, 5))


def test_cutout_removes_one_square():
    images = np.ones((MANY, 8, 8, 2), np.float32)
    out = np.asarray(views.random_cutout(keys(MANY), images, 0.7, size=0.6, fill=0.25))
    hole = out[..., 0] == 0.25
    assert (hole == (out[..., 1] == 0.25)).all() and (out[~np.isclose(out, 0.25)] == 1).all()
    cut = hole.any((1, 2))
    check_rate(cut, 0.7)
    rows, columns = hole.any(2).sum(1)[cut], hole.any(1).sum(1)[cut]
    assert (hole.sum((1, 2))[cut] == rows * columns).all()
    assert (
        rows.max() == columns.max() == 5 and rows.min() >= 3
    )  # 0.6 of 8: five pixels around a centre, fewer at the border
    assert hole[:, 0, 0].any() and hole[:, -1, -1].any()


def test_resize_and_center_crop():
    images = pictures(2, 6, 8)
    assert views.resize(images, (6, 8)) is images
    np.testing.assert_allclose(views.resize(images, 4)[1, :, :, 0], Image.fromarray(images[1, :, :, 0]).resize(
        (4, 4), Image.Resampling.BILINEAR
    ), atol=1e-6)  # fmt: skip
    np.testing.assert_array_equal(views.center_crop(images, 5), images[:, 0:5, 1:6])
    with pytest.raises(UserError, match="got a size of 7 x 7, must fit into images of 6 x 8"):
        views.center_crop(images, 7)


# --- colour -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation, reference",
    [
        (views.adjust_brightness, ImageEnhance.Brightness),
        (views.adjust_contrast, ImageEnhance.Contrast),
        (views.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_colour_changes_equal_pillow(operation, reference):
    images = (RNG.random((4, 6, 5, 3)) * 255).astype(np.uint8)
    factors = [0.0, 0.4, 1.0, 1.7]
    actual = operation(views.to_float(images), jnp.float32(factors))
    for image, factor, result in zip(images, factors, actual):
        expected = np.asarray(reference(Image.fromarray(image)).enhance(factor), np.float64) / 255
        np.testing.assert_allclose(
            result, expected, atol=2.5 / 255
        )  # Pillow rounds to bytes, including the mean grey value


def test_hue_equals_colorsys():
    images = pictures(5, 4, 4)
    images[0, 0] = 0.5  # grey has no hue
    turns = [0.0, 0.2, -0.3, 0.5, 1.0]
    actual = jax.jit(views.adjust_hue)(images, jnp.float32(turns))
    for image, turn, result in zip(images.astype(np.float64), turns, actual):
        for index in np.ndindex(4, 4):
            h, s, v = colorsys.rgb_to_hsv(*image[index])
            np.testing.assert_allclose(result[index], colorsys.hsv_to_rgb((h + turn) % 1, s, v), atol=1e-5)


@pytest.mark.parametrize("side", [8, 21])
def test_blur_equals_scipy(side):
    images = pictures(4, side, 10)
    sigmas = [0.0, 0.3, 1.0, 2.0]
    actual = jax.jit(views.gaussian_blur)(images, jnp.float32(sigmas))
    np.testing.assert_array_equal(actual[0], images[0])
    for image, sigma, result in zip(images[1:].astype(np.float64), sigmas[1:], actual[1:]):
        expected = scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="reflect", truncate=3.0)
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_jitter_factors_are_uniform():
    # An image of two constant halves: the effect of each step can be computed from the result.
    images = np.tile(np.float32([[[0.3] * 3, [0.5] * 3]]), (MANY, 1, 1, 1))
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}

    def jitter(probability, **change):
        return np.asarray(views.random_color_jitter(keys(MANY), images, probability, **{**off, **change}), np.float64)

    factor = jitter(1.0, brightness=0.4)[:, 0, 0, 0] / 0.3
    np.testing.assert_allclose([factor.min(), factor.mean(), factor.max()], [0.6, 1, 1.4], atol=0.02)
    np.testing.assert_allclose(factor.std(), 0.8 / 12**0.5, rtol=0.05)
    out = jitter(1.0, contrast=0.4)[:, 0, :, 0]
    np.testing.assert_allclose(out.mean(1), 0.4, atol=1e-5)
    np.testing.assert_allclose((out[:, 1] - out[:, 0]).std(), 0.2 * 0.8 / 12**0.5, rtol=0.05)
    check_rate(np.abs(jitter(0.3, brightness=0.4) - images).max((1, 2, 3)) > 1e-6, 0.3)
    images = np.tile(np.float32([0.8, 0.4, 0.4]), (MANY, 1, 1, 1))
    hue = np.array([colorsys.rgb_to_hsv(*x[0, 0])[0] for x in jitter(1.0, hue=0.1)])
    hue = np.where(hue > 0.5, hue - 1, hue)
    np.testing.assert_allclose([hue.min(), hue.mean(), hue.max()], [-0.1, 0, 0.1], atol=0.01)


@pytest.mark.parametrize(
    "operation, changed",
    [
        (views.random_grayscale, lambda x: np.repeat(x @ np.float32([0.299, 0.587, 0.114])[:, None], 3, -1)),
        (partial(views.random_solarize, threshold=0.4), lambda x: np.where(x >= 0.4, 1 - x, x)),
        (
            partial(views.random_solarize, threshold=0.5),
            lambda x: np.asarray(ImageOps.solarize(Image.fromarray(np.uint8(x[0] * 255)), 128), np.float32)[None] / 255,
        ),
    ],
)
def test_grey_and_solarisation(operation, changed):
    images = np.float32(np.round(pictures(1, 4, 4) * 255) / 255)
    np.testing.assert_allclose(operation(keys(1), images, probability=1.0), changed(images), atol=1.01 / 255)
    many = images[:, :1, :2].repeat(MANY, 0)
    check_rate((np.asarray(operation(keys(MANY), many, probability=0.2)) != many).any((1, 2, 3)), 0.2)


def test_blur_and_noise_rates():
    images = np.full((MANY, 4, 4, 1), 0.5, np.float32)
    images[:, 1, 1] = 1
    blurred = np.asarray(views.random_gaussian_blur(keys(MANY), images, 0.4, (0.8, 1.0)))
    check_rate(blurred[:, 1, 1, 0] < 0.99, 0.4)
    noisy = np.asarray(views.random_noise(keys(MANY), images, 0.6, std=0.05))
    on = (noisy != images).any((1, 2, 3))
    check_rate(on, 0.6)
    np.testing.assert_allclose((noisy - images)[on][:, 2:].std(), 0.05, rtol=0.02)
    assert noisy.max() <= 1


def test_one_channel_keeps_its_colour_and_two_are_refused():
    gray = pictures(2, 4, 4, 1)
    for operation in (views.adjust_hue, views.adjust_saturation):
        assert operation(gray, jnp.full(2, 0.3)) is gray
    assert views.random_grayscale(keys(2), gray, 1.0) is gray
    assert (np.asarray(views.random_color_jitter(keys(2), gray, 1.0)) != gray).any()
    with pytest.raises(UserError, match="got 2 channels, must be 1 or 3"):
        views.random_grayscale(keys(2), pictures(2, 4, 4, 2))


def test_pixels_to_floats():
    assert views.to_float(np.uint8([0, 51, 255])).tolist() == pytest.approx([0, 0.2, 1])
    x = np.float32([0.25, 0.5])
    np.testing.assert_array_equal(views.to_float(x), x)
    out = views.normalize(np.full((1, 2, 2, 3), 0.5, np.float32), (0.5, 0.4, 0.0), (1.0, 0.1, 0.25))
    np.testing.assert_allclose(out[0, 1, 1], [0, 1, 2], rtol=1e-5)
