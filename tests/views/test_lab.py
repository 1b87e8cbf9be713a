"""CIELAB by its definition in float64, the bins of colours, and their encoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import views

RNG = np.random.default_rng(0)
COLOURS = np.concatenate(
    [RNG.random((500, 3)), RNG.random((100, 3)) * 0.05, np.eye(3), 1 - np.eye(3), [[0.0] * 3, [1.0] * 3]]
)
# Known colours: L, a, b to two places (D65, 2 degrees).
KNOWN = {
    (1, 0, 0): (53.24, 80.09, 67.20),
    (0, 1, 0): (87.73, -86.18, 83.18),
    (0, 0, 1): (32.30, 79.19, -107.86),
    (1, 1, 1): (100, 0, 0),
    (0.5, 0.5, 0.5): (53.39, 0, 0),
}


def lab(rgb):
    """CIE 15 of sRGB (IEC 61966-2-1), in float64."""
    linear = np.where(rgb > 0.04045, ((np.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    primaries = np.array([[0.64, 0.33, 0.03], [0.30, 0.60, 0.10], [0.15, 0.06, 0.79]])
    white = np.array([0.3127, 0.3290, 0.3583]) / 0.3290
    brightness = np.linalg.solve(primaries.T, white)
    t = linear @ (primaries * brightness[:, None]) / white
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def test_lab_by_its_definition():
    found = jax.jit(views.rgb_to_lab)(jnp.asarray(COLOURS, jnp.float32))
    np.testing.assert_allclose(found, lab(COLOURS), atol=1e-3)
    np.testing.assert_allclose(jax.jit(views.lab_to_rgb)(found), COLOURS, atol=1e-5)
    slopes = jax.jacobian(lambda x: views.lab_to_rgb(views.rgb_to_lab(x)))(jnp.array([0.2, 0.01, 0.7]))
    np.testing.assert_allclose(slopes, np.eye(3), atol=1e-3)


@pytest.mark.parametrize("rgb", list(KNOWN))
def test_lab_of_known_colours(rgb):
    np.testing.assert_allclose(views.rgb_to_lab(jnp.array(rgb, jnp.float32)), KNOWN[rgb], atol=0.03)


def test_lab_agrees_with_scikit_image():
    color = pytest.importorskip("skimage.color")
    np.testing.assert_allclose(views.rgb_to_lab(jnp.asarray(COLOURS, jnp.float32)), color.rgb2lab(COLOURS), atol=0.05)


def test_colours_outside_of_the_gamut_are_clipped():
    found = np.asarray(views.lab_to_rgb(jnp.array([[50.0, 120, -120], [100, -80, 0], [-5, 0, 0]])))
    assert np.isfinite(found).all() and found.min() == 0 and found.max() == 1


def test_bins_cover_the_gamut():
    bins = views.ab_bins()
    assert bins.shape == (313, 2) and len({tuple(b) for b in bins}) == 313 and (bins % 10 == 0).all()
    side = np.linspace(0, 1, 33)
    ab = lab(np.stack(np.meshgrid(side, side, side), -1).reshape(-1, 3))[:, 1:]
    assert {tuple(b) for b in np.round(ab / 10) * 10} <= {tuple(b.astype(float)) for b in bins}
    grid = np.stack(np.meshgrid(np.arange(-130, 131, 10), np.arange(-130, 131, 10)), -1).reshape(-1, 2)
    distance = {tuple(p): np.sqrt(((ab - p) ** 2).sum(1).min()) for p in grid}
    chosen = {tuple(b) for b in bins}
    assert max(distance[b] for b in chosen) < min(d for p, d in distance.items() if p not in chosen) + 0.5
    assert max(distance[b] for b in chosen) < 14


def test_nearest_bins():
    bins = views.ab_bins()
    ab = RNG.uniform(-60, 60, (40, 2))
    index, weights = jax.jit(lambda ab: views.nearest_bins(ab, bins, 5, 5.0))(jnp.asarray(ab, jnp.float32))
    for row, found, share in zip(ab, np.asarray(index), np.asarray(weights)):
        distance = np.sqrt(((bins - row) ** 2).sum(1))
        expected = np.argsort(distance)[:5]
        assert sorted(found) == sorted(expected) and found[0] == expected[0]
        g = np.exp(-(distance[found] ** 2) / 50)
        np.testing.assert_allclose(share, g / g.sum(), atol=1e-4)


@pytest.mark.parametrize("mix", [0.5, 0.1, 1.0])
def test_rebalancing(mix):
    bins = views.ab_bins(40)
    counts = RNG.integers(0, 50, 40).astype(float)
    found = views.rebalancing(jnp.asarray(counts, jnp.float32), bins, mix, 5.0)
    p = np.zeros(40)
    for q, n in enumerate(counts):
        g = np.exp(-((bins - bins[q]) ** 2).sum(1) / 50)
        p += n / counts.sum() * g / g.sum()
    w = 1 / ((1 - mix) * p + mix / 40)
    np.testing.assert_allclose(found, w / (p * w).sum(), rtol=1e-5)
    np.testing.assert_allclose((p * np.asarray(found)).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.38, 1.0])
def test_annealed_mean(temperature):
    bins, logits = views.ab_bins(20), RNG.normal(size=(7, 20)) * 3
    z = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    sharp = np.exp(np.log(z) / temperature)
    expected = sharp / sharp.sum(1, keepdims=True) @ bins
    found = views.annealed_mean(jnp.asarray(logits, jnp.float32), bins, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
