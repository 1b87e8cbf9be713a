"""Histograms of oriented gradients of images."""

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError

FLAT = 1e-3  # gradients below it are round-off: one grey level beside another has at least 1 / 255
_SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


def hog(images: jax.Array, cell: int, bins: int = 9) -> jax.Array:
    """Histograms of oriented gradients (Dalal & Triggs 2005), in the form of MaskFeat (Wei et al. 2022, section 3.2).

    Gradients of each channel are those of Sobel filters, with reflected borders. A pixel adds the size of its gradient
    to the bin of its orientation, without sign. The histogram of each cell and channel has length 1. Gradients below
    `FLAT` count as 0.

    Args:
        images: [B, H, W, C] in [0, 1].
        cell: side of a cell in pixels.
        bins: number of orientations between 0 and 180 degrees.

    Returns:
        float32 [B, H / cell, W / cell, C, bins]; zeros for a cell without gradients.

    Raises:
        UserError: cells do not tile the images.
    """
    b, h, w, c = images.shape
    if h % cell or w % cell:
        raise UserError(f"hog: got images of {h} x {w}, must be divisible into cells of {cell} x {cell}")
    x = jnp.pad(images.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    kernel = jnp.asarray(_SOBEL)
    shifts = [(i, j) for i in range(3) for j in range(3)]
    across = sum(kernel[i, j] * x[:, i : i + h, j : j + w] for i, j in shifts)
    down = sum(kernel[j, i] * x[:, i : i + h, j : j + w] for i, j in shifts)
    size = jnp.sqrt(jnp.square(across) + jnp.square(down))
    size = jnp.where(size < FLAT, 0.0, size)
    phase = jnp.arctan2(across, down) / jnp.pi * bins
    bin_BxHxWxC = jnp.floor(phase).astype(jnp.int32) % bins
    votes = size[..., None] * jax.nn.one_hot(bin_BxHxWxC, bins)
    cells = votes.reshape(b, h // cell, cell, w // cell, cell, c, bins).sum((2, 4))
    norm = jnp.sqrt(jnp.square(cells).sum(-1, keepdims=True))
    return cells / jnp.where(norm > 0, norm, 1.0)
