"""Operations on colour and sharpness. Images are float32 [B, H, W, C] in [0, 1].

Keys [B] come from `views.keys.example_keys`. All operations except the noise also accept uniform numbers instead of
keys (`views.keys.uniforms`). Saturation, hue and grey leave images with one channel unchanged; other numbers of
channels than one and three are refused.
"""

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.views.geometry import separable
from ssljax.views.keys import between, uniforms

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision


def random_color_jitter(
    keys: jax.Array,
    images: jax.Array,
    probability: float = 0.8,
    brightness: float = 0.8,
    contrast: float = 0.8,
    saturation: float = 0.8,
    hue: float = 0.2,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, in this fixed order, with the given probability.

    The factors are uniform in [max(0, 1 - x), 1 + x]; the hue is rotated by a uniform share of the colour circle in
    [-hue, hue]. As in torchvision and Chen et al. 2020, appendix A, which however shuffle the four operations.
    """
    u = uniforms(keys, 5)
    on = u[:, 0] < probability

    def factor(column, x):
        return jnp.where(on, between(u[:, column], jnp.maximum(0.0, 1 - x), 1 + x), 1.0)

    images = adjust_contrast(adjust_brightness(images, factor(1, brightness)), factor(2, contrast))
    images = adjust_saturation(images, factor(3, saturation))
    return adjust_hue(images, jnp.where(on, between(u[:, 4], -hue, hue), 0.0))


def random_grayscale(keys: jax.Array, images: jax.Array, probability: float = 0.2) -> jax.Array:
    """Sets all three channels to the grey value (ITU-R BT.601), with the given probability."""
    return adjust_saturation(images, 1.0 - (uniforms(keys, 1)[:, 0] < probability))


def random_gaussian_blur(
    keys: jax.Array,
    images: jax.Array,
    probability: float = 0.5,
    sigma: tuple[float, float] = (0.1, 2.0),
) -> jax.Array:
    """Applies `gaussian_blur` with a uniform sigma in pixels, with the given probability."""
    u = uniforms(keys, 2)
    sigma_B = between(u[:, 1], *sigma)
    return gaussian_blur(images, jnp.where(u[:, 0] < probability, sigma_B, 0.0))


def random_solarize(keys: jax.Array, images: jax.Array, probability: float = 0.2, threshold: float = 0.5) -> jax.Array:
    """Inverts every value at or above the threshold to 1 - x, with the given probability."""
    on = (uniforms(keys, 1)[:, 0] < probability)[:, None, None, None]
    return jnp.where(on & (images >= threshold), 1 - images, images)


def random_noise(keys: jax.Array, images: jax.Array, probability: float = 1.0, std: float = 0.1) -> jax.Array:
    """Adds Gaussian noise of standard deviation `std` and clips to [0, 1], with the given probability."""
    on = uniforms(keys, 1)[:, 0] < probability
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), images.shape[1:]))(keys)
    return jnp.where(on[:, None, None, None], jnp.clip(images + std * noise, 0, 1), images)


def adjust_brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns factor x, clipped to [0, 1]; factor [B]."""
    return jnp.clip(images * _wide(factor), 0, 1)


def adjust_contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns factor x + (1 - factor) m, clipped to [0, 1], with m the mean grey value of the image; factor [B]."""
    mean = _gray(images).mean((1, 2, 3), keepdims=True)
    return jnp.clip(_wide(factor) * images + (1 - _wide(factor)) * mean, 0, 1)


def adjust_saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns factor x + (1 - factor) g, clipped to [0, 1], with g the grey value of the pixel; factor [B]."""
    if not _has_colour(images):
        return images
    gray = _gray(images)
    return jnp.clip(_wide(factor) * images + (1 - _wide(factor)) * gray, 0, 1)


def adjust_hue(images: jax.Array, turn: jax.Array) -> jax.Array:
    """Rotates the hue of HSV by `turn` [B], in turns of the colour circle; saturation and value stay."""
    if not _has_colour(images):
        return images
    r, g, b = images[..., 0], images[..., 1], images[..., 2]
    value = images.max(-1)
    chroma = value - images.min(-1)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    # Not `value == r`: a compiler may compute r twice with different rounding, and then no channel equals the maximum.
    from_red, from_green, from_blue = (g - b) / safe, 2 + (b - r) / safe, 4 + (r - g) / safe
    sixths = jnp.where((r >= g) & (r >= b), from_red, jnp.where(g >= b, from_green, from_blue))
    sixths = sixths + 6 * turn[:, None, None]
    sixths = sixths - 6 * jnp.floor(sixths / 6)  # many times faster than `%` on a CPU
    # The share of each channel in [0, 1] is a trapezoid in the hue, shifted by a third of the circle each.
    share = jnp.stack([jnp.abs(sixths - 3) - 1, 2 - jnp.abs(sixths - 2), 2 - jnp.abs(sixths - 4)], -1)
    return value[..., None] - chroma[..., None] * (1 - jnp.clip(share, 0, 1))


def gaussian_blur(images: jax.Array, sigma: jax.Array, truncate: float = 3.0) -> jax.Array:
    """Convolves image i with a Gaussian of standard deviation sigma[i]; sigma [B] in pixels, 0 = unchanged.

    As `scipy.ndimage.gaussian_filter(mode="reflect")`: the filter reaches int(truncate sigma + 0.5) pixels, and
    borders are mirrored once. Weights beyond the first mirror image are left out, so the reach must not exceed the
    image side.
    """
    return separable(
        images, _blur_matrix(sigma, images.shape[1], truncate), _blur_matrix(sigma, images.shape[2], truncate)
    )


def _blur_matrix(sigma: jax.Array, n: int, truncate: float) -> jax.Array:
    """Blur matrices [B, n, n]. Entry (i, j) is the weight of pixel j, including its mirror images at both borders."""
    sigma = jnp.maximum(sigma, 1e-3)[:, None, None]
    radius = jnp.floor(truncate * sigma + 0.5)
    i, j = jnp.arange(n)[:, None], jnp.arange(n)[None, :]

    def tap(distance):
        return jnp.where(jnp.abs(distance) <= radius, jnp.exp(-0.5 * jnp.square(distance / sigma)), 0.0)

    weights = tap(i - j) + tap(i + j + 1) + tap(2 * n - 1 - i - j)
    return weights / weights.sum(-1, keepdims=True)


def _wide(x: jax.Array) -> jax.Array:
    return jnp.asarray(x)[:, None, None, None]


def _gray(images: jax.Array) -> jax.Array:
    """The grey values [B, H, W, 1]."""
    if not _has_colour(images):
        return images
    return LUMA[0] * images[..., :1] + LUMA[1] * images[..., 1:2] + LUMA[2] * images[..., 2:]


def _has_colour(images: jax.Array) -> bool:
    if images.shape[-1] not in (1, 3):
        raise UserError(f"colour operations: got {images.shape[-1]} channels, must be 1 or 3")
    return images.shape[-1] == 3
