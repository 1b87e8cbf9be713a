"""Deterministic steps between stored pixels and model input."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.views.geometry import resample


def to_float(images: jax.Array) -> jax.Array:
    """uint8 [..., C] in 0..255 to float32 in [0, 1]; float images are taken to be in [0, 1] already."""
    scale = 1 / 255 if jnp.issubdtype(images.dtype, jnp.integer) else 1
    return images.astype(jnp.float32) * scale


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(images - mean) / std by channel; images [..., C], mean and std of length C (or 1)."""
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def resize(images: jax.Array, size: int | tuple[int, int]) -> jax.Array:
    """[B, H, W, C] to [B, size, size, C] (or [B, h, w, C]): bilinear, antialiased where it shrinks."""
    h, w = (size, size) if isinstance(size, int) else size
    if images.shape[1:3] == (h, w):
        return images
    whole = jnp.zeros((1, 2)), jnp.array([images.shape[1:3]], jnp.float32)
    return resample(images, *whole, (h, w))


def center_crop(images: jax.Array, size: int) -> jax.Array:
    """The middle size x size pixels of [B, H, W, C]; an odd remainder leaves one row more below and to the right."""
    h, w = images.shape[1:3]
    if size > min(h, w):
        raise UserError(f"cannot crop {size} x {size} out of {h} x {w}")
    top, left = (h - size) // 2, (w - size) // 2
    return images[:, top : top + size, left : left + size]
