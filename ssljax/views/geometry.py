"""Operations that move pixels. Images are float32 [B, H, W, C].

Keys [B] come from `views.keys.example_keys`; uniform numbers are accepted instead of them (`views.keys.uniforms`).
"""

import math

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.views.keys import between, uniforms

ATTEMPTS = 10  # number of draws of a box before the fallback, as in torchvision


def random_resized_crop(
    keys: jax.Array,
    images: jax.Array,
    size: int | tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    aspect: jax.Array | None = None,
) -> jax.Array:
    """Crops a random box of each image and resizes it (Szegedy et al. 2015, "Going Deeper with Convolutions").

    The area of the box is a uniform share of the image area in `scale`; its aspect (width / height) is log-uniform in
    `ratio`. Area and aspect are drawn until the box fits, at most 10 times; its position is then uniform. If no draw
    fits, the box is the largest centred box with an allowed aspect. Boxes are not rounded to whole pixels. Resizing is
    bilinear, with antialiasing if the box is larger than `size`.

    `aspect` [B] is the width / height of pictures that were squeezed into H x W pixels: the box has its area and aspect
    in the proportions of the picture.
    """
    h, w = images.shape[1:3]
    offset_Bx2, extent_Bx2 = random_boxes(keys, (h, w), scale, ratio, aspect)
    return resample(images, offset_Bx2, extent_Bx2, (size, size) if isinstance(size, int) else size)


def random_boxes(
    keys: jax.Array,
    shape: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    aspect: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the boxes of `random_resized_crop`: offsets [B, 2] and extents [B, 2] as (y, x), in pixels."""
    sides_Bx2 = picture_sides(shape, aspect)
    h_B, w_B = sides_Bx2[:, 0], sides_Bx2[:, 1]
    u = uniforms(keys, 2 * ATTEMPTS + 2)
    area_BxA = between(u[:, :ATTEMPTS], *scale) * (h_B * w_B)[:, None]
    aspect_BxA = jnp.exp(between(u[:, ATTEMPTS:-2], math.log(ratio[0]), math.log(ratio[1])))
    extent_BxAx2 = jnp.stack([jnp.sqrt(area_BxA / aspect_BxA), jnp.sqrt(area_BxA * aspect_BxA)], -1)
    fits_BxA = (extent_BxAx2 <= sides_Bx2[:, None]).all(-1)
    first = jnp.argmax(fits_BxA, 1)[:, None, None]
    nearest_B = jnp.clip(w_B / h_B, ratio[0], ratio[1])
    fallback_Bx2 = jnp.stack([jnp.minimum(h_B, w_B / nearest_B), jnp.minimum(w_B, h_B * nearest_B)], -1)
    extent = jnp.take_along_axis(extent_BxAx2, first, 1)[:, 0]
    found = fits_BxA.any(1, keepdims=True)
    extent = jnp.where(found, extent, fallback_Bx2)
    position = jnp.where(found, u[:, -2:], 0.5)
    pixels = jnp.array(shape) / sides_Bx2
    return position * (sides_Bx2 - extent) * pixels, extent * pixels


def picture_sides(shape: tuple[int, int], aspect: jax.Array | None) -> jax.Array:
    """Returns height and width of pictures in one unit, [B or 1, 2]: `shape`, or those of an `aspect` [B]."""
    if aspect is None:
        return jnp.array([shape], jnp.float32)
    return jnp.stack([jnp.full_like(aspect, shape[0]), shape[0] * aspect], -1)


def central_square(images: jax.Array, size: tuple[int, int], aspect: jax.Array) -> jax.Array:
    """Crops the central square of pictures that were squeezed into [B, H, W, C], and resizes it to `size`."""
    shape = images.shape[1], images.shape[2]
    sides_Bx2 = picture_sides(shape, aspect)
    extent_Bx2 = jnp.min(sides_Bx2, -1, keepdims=True) * jnp.array(shape) / sides_Bx2
    return resample(images, (jnp.array(shape) - extent_Bx2) / 2, extent_Bx2, size)


def resample(images: jax.Array, offset: jax.Array, extent: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes the box (offset, offset + extent) of each image to `size`: bilinear, antialiased if the box is larger.

    Two small matrix products per image, with the weights of Pillow's `Image.resize(size, BILINEAR, box=...)`.

    Args:
        images: [B, H, W, C].
        offset, extent: [B or 1, 2] as (y, x), in pixels, inside the image.
        size: (h, w).
    """
    height, width = images.shape[1:3]
    rows = _interpolation(offset[:, 0], extent[:, 0], height, size[0])
    columns = _interpolation(offset[:, 1], extent[:, 1], width, size[1])
    return separable(images, rows, columns)


def separable(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Applies linear maps along the image axes of [B, H, W, C]: rows [B or 1, h, H] and columns [B or 1, w, W]."""
    b, height, width, c = images.shape
    rows = jnp.broadcast_to(rows, (b, *rows.shape[1:]))
    columns = jnp.broadcast_to(columns, (b, *columns.shape[1:]))
    exact = jax.lax.Precision.HIGHEST  # lower precision would be a second, hidden augmentation
    y = jnp.einsum("bhH,bHx->bhx", rows, images.reshape(b, height, width * c), precision=exact)
    y = y.reshape(b, rows.shape[1], width, c)
    return jnp.einsum("bwW,bhWc->bhwc", columns, y, precision=exact)


def _interpolation(offset: jax.Array, extent: jax.Array, old: int, new: int) -> jax.Array:
    """Weights [B, new, old] of a triangle filter, with the radius of one pixel of the coarser grid; rows sum to 1."""
    step = (extent / new)[:, None, None]
    center = offset[:, None, None] + (jnp.arange(new)[:, None] + 0.5) * step
    distance = jnp.abs(jnp.arange(old) + 0.5 - center) / jnp.maximum(step, 1.0)
    weights = jnp.maximum(1 - distance, 0.0)
    return weights / weights.sum(-1, keepdims=True)


def random_flip(keys: jax.Array, images: jax.Array, probability: float = 0.5) -> jax.Array:
    """Flips images horizontally, with the given probability."""
    flip = uniforms(keys, 1)[:, 0] < probability
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def random_rotate90(keys: jax.Array, images: jax.Array, probability: float = 1.0) -> jax.Array:
    """Rotates square images by 0, 90, 180 or 270 degrees, each equally likely, with the given probability."""
    if images.shape[1] != images.shape[2]:
        raise UserError(f"rotation by 90 degrees: got images of {images.shape[1]} x {images.shape[2]}, must be square")
    u = uniforms(keys, 2)
    turns = jnp.where(u[:, 0] < probability, jnp.floor(4 * u[:, 1]), 0)[:, None, None, None]
    half = jnp.where(turns >= 2, images[:, ::-1, ::-1], images)
    quarter = jnp.swapaxes(half, 1, 2)[:, ::-1]
    return jnp.where(turns % 2 == 1, quarter, half)


def random_cutout(
    keys: jax.Array, images: jax.Array, probability: float = 1.0, size: float = 0.5, fill: float = 0.0
) -> jax.Array:
    """Sets a square to `fill` with the given probability (DeVries & Taylor 2017, "Improved Regularization ... Cutout").

    The side of the square is `size` times the shorter image side. Its centre is any pixel, so the square may extend
    past the border.
    """
    h, w = images.shape[1:3]
    u = uniforms(keys, 3)
    half = size * min(h, w) / 2
    inside_h = jnp.abs(jnp.arange(h) - jnp.floor(u[:, 1:2] * h)) < half
    inside_w = jnp.abs(jnp.arange(w) - jnp.floor(u[:, 2:3] * w)) < half
    cut = (u[:, :1] < probability)[..., None] & inside_h[:, :, None] & inside_w[:, None, :]
    return jnp.where(cut[..., None], fill, images)
