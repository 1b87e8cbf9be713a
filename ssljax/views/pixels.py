"""Deterministic steps from stored pixels to model inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.views.geometry import central_square, resample


def to_float(images: jax.Array) -> jax.Array:
    """Converts integer images in 0..255 to float32 in [0, 1]. Float images are assumed to be in [0, 1] already."""
    scale = 1 / 255 if jnp.issubdtype(images.dtype, jnp.integer) else 1
    return images.astype(jnp.float32) * scale


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (images - mean) / std for each channel; images [..., C], mean and std of length C or 1."""
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def unnormalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Inverse of `normalize`: images * std + mean for each channel."""
    return images * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32)


def resize(images: jax.Array, size: int | tuple[int, int]) -> jax.Array:
    """Resizes images [B, H, W, C] to `size`, one side or (h, w): bilinear, antialiased when shrinking."""
    h, w = (size, size) if isinstance(size, int) else size
    if images.shape[1:3] == (h, w):
        return images
    whole = jnp.zeros((1, 2)), jnp.array([images.shape[1:3]], jnp.float32)
    return resample(images, *whole, (h, w))


def centered(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a batch with the central squares of squeezed pictures; unchanged if it has no `aspect`."""
    images, aspect = batch.get("image"), batch.get("aspect")
    if images is None or aspect is None:
        return dict(batch)
    return {**batch, "image": central_square(images, (images.shape[1], images.shape[2]), aspect)}


def center_crop(images: jax.Array, size: int) -> jax.Array:
    """Crops the central size x size pixels of [B, H, W, C]; an odd margin is one larger at the bottom and right."""
    h, w = images.shape[1:3]
    if size > min(h, w):
        raise UserError(f"centre crop: got a size of {size} x {size}, must fit into images of {h} x {w}")
    top, left = (h - size) // 2, (w - size) // 2
    return images[:, top : top + size, left : left + size]
