"""Histograms of oriented gradients by loops over pixels, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import views
from ssljax.base.errors import UserError


def by_loops(image, cell, bins):
    h, w, c = image.shape
    x = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    out = np.zeros((h // cell, w // cell, c, bins))
    for i in range(h):
        for j in range(w):
            for k in range(c):
                near = x[i : i + 3, j : j + 3, k]
                across = (near[:, 0] - near[:, 2]) @ (1, 2, 1)
                down = (near[0] - near[2]) @ (1, 2, 1)
                if np.hypot(across, down) < 1e-3:
                    continue
                number = int(np.floor(np.arctan2(across, down) / np.pi * bins)) % bins
                out[i // cell, j // cell, k, number] += np.hypot(across, down)
    norm = np.linalg.norm(out, axis=-1, keepdims=True)
    return out / np.where(norm > 0, norm, 1)


@pytest.mark.parametrize(("cell", "bins"), [(2, 9), (4, 7)])
def test_histograms_by_loops(cell, bins):
    images = np.random.default_rng(0).random((2, 8, 12, 3)).astype(np.float32)
    images[1, :4, :4] = 0.3  # no gradient but at the border
    found = views.hog(jnp.asarray(images), cell, bins)
    expected = np.stack([by_loops(image.astype(np.float64), cell, bins) for image in images])
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_an_edge_has_one_orientation():
    image = jnp.zeros((1, 8, 8, 1)).at[:, :, 4:].set(1.0)
    upright, flat = (views.hog(x, 8)[0, 0, 0, 0] for x in (image, jnp.swapaxes(image, 1, 2)))
    assert upright.max() == flat.max() == 1 and upright.argmax() != flat.argmax()
    assert not views.hog(jnp.ones((1, 8, 8, 1)), 8).any()


@pytest.mark.parametrize("value", [0.0, 0.3, 0.7, 200 / 255, 1.0])
def test_resampling_errors_of_a_flat_image_are_no_gradients(value):
    crop = views.Single(crop_scale=(0.3, 0.9))
    images = crop(views.example_keys(jax.random.key(0), 16), jnp.full((16, 16, 16, 3), value))
    assert not views.hog(images, 4).any()


def test_cells_must_tile_the_image():
    with pytest.raises(UserError, match="images of 8 x 8, must be divisible into cells of 3 x 3"):
        views.hog(jnp.zeros((1, 8, 8, 1)), 3)
