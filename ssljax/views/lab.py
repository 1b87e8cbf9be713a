"""Colours in CIELAB: conversion from and to sRGB, and the bins of colourisation.

Zhang, Isola, Efros 2016, "Colorful Image Colorization".
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

EXACT = jax.lax.Precision.HIGHEST
_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # chromaticities (x, y) of red, green and blue in sRGB
_WHITE = (0.3127, 0.3290)  # of D65
_KNEE = 6 / 29  # where the cube root of CIELAB becomes a line


def _xyz(chromaticity: tuple[float, float]) -> np.ndarray:
    x, y = chromaticity
    return np.array([x, y, 1 - x - y]) / y


def _from_linear() -> np.ndarray:
    """The matrix from linear sRGB to XYZ divided by the white: (1, 1, 1) maps to itself."""
    columns, white = np.stack([_xyz(p) for p in _PRIMARIES], 1), _xyz(_WHITE)
    return columns * np.linalg.solve(columns, white) / white[:, None]


def rgb_to_lab(images: jax.Array) -> jax.Array:
    """Converts sRGB in [0, 1] to CIELAB under D65 (2 degrees): L in [0, 100], a (green to red), b (blue to yellow).

    Args:
        images: [..., 3].
    """
    high = ((jnp.maximum(images, 0.04045) + 0.055) / 1.055) ** 2.4
    linear = jnp.where(images > 0.04045, high, images / 12.92)
    t = jnp.matmul(linear, jnp.asarray(_from_linear().T, jnp.float32), precision=EXACT)
    f = jnp.where(t > _KNEE**3, jnp.cbrt(jnp.maximum(t, _KNEE**3)), t / (3 * _KNEE**2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab_to_rgb(lab: jax.Array) -> jax.Array:
    """Converts CIELAB [..., 3] to sRGB; colours outside of its gamut are clipped to [0, 1]."""
    y = (lab[..., 0] + 16) / 116
    f = jnp.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    t = jnp.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29))
    linear = jnp.matmul(t, jnp.asarray(np.linalg.inv(_from_linear()).T, jnp.float32), precision=EXACT)
    high = 1.055 * jnp.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.clip(jnp.where(linear > 0.0031308, high, 12.92 * linear), 0, 1)


@functools.cache
def ab_bins(count: int = 313, size: float = 10.0) -> np.ndarray:
    """Returns the centres of the colour bins, float32 [count, 2]: the points of a grid that are nearest to the gamut.

    The grid has the multiples of `size` in a and b. Inside of the gamut of sRGB the distance is 0. Zhang et al. 2016
    (section 2.1) have 313 bins of size 10, which their code reads from a file; about 260 points of this grid are
    nearest to some colour of sRGB, and the others lie around them.

    Args:
        count: number of bins (Q).
        size: distance of neighbours in the grid.
    """
    side = np.linspace(0, 1, 48)
    plane = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    surface = np.concatenate([np.insert(plane, axis, end, 1) for axis in range(3) for end in (0.0, 1.0)])
    with jax.ensure_compile_time_eval():
        gamut = np.asarray(rgb_to_lab(jnp.asarray(surface, jnp.float32)), np.float64)[:, 1:]
    line = np.arange(-np.ceil(150 / size), np.ceil(150 / size) + 1) * size
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    square = (grid**2).sum(1)[:, None] - 2 * grid @ gamut.T + (gamut**2).sum(1)
    nearest = np.argsort(square.min(1), kind="stable")[:count]
    return grid[np.sort(nearest)].astype(np.float32)


def nearest_bins(
    ab: jax.Array, bins: jax.Array | np.ndarray, neighbours: int = 5, sigma: float = 5.0
) -> tuple[jax.Array, jax.Array]:
    """Encodes colours softly in their nearest bins (Zhang et al. 2016, section 2.1).

    Args:
        ab: [..., 2].
        bins: [Q, 2].
        neighbours: number of bins of a colour.
        sigma: standard deviation of the Gaussian of the distance that weights them.

    Returns:
        (int32 [..., neighbours], the bins, nearest first; float32 of the same shape, their weights, with sum 1).
    """
    bins = jnp.asarray(bins, jnp.float32)
    # |ab|^2 - |ab - bin|^2: the order and the softmax are those of -|ab - bin|^2.
    closeness = 2 * jnp.matmul(ab, bins.T, precision=EXACT) - jnp.square(bins).sum(-1)
    # Behind barriers, since a caller that takes the first bin alone would make XLA sort all bins for it; one for each
    # array, since XLA's partitioner aborts on a pair of them inside a loop.
    closest, index = map(jax.lax.optimization_barrier, jax.lax.top_k(closeness, neighbours))
    return index, jax.nn.softmax(closest / (2 * sigma**2), -1)


def rebalancing(frequency: jax.Array, bins: jax.Array | np.ndarray, mix: float = 0.5, sigma: float = 5.0) -> jax.Array:
    """Returns weights of rare colours, [Q]: 1 / ((1 - mix) p + mix / Q), scaled to a mean of 1 under p.

    Zhang et al. 2016, eq. 4. p is the frequency, smoothed with a Gaussian of the distance of bins.

    Args:
        frequency: [Q], share or number of the pixels of each bin.
        bins: [Q, 2].
        mix: share of the uniform distribution (lambda).
        sigma: standard deviation of the Gaussian.
    """
    bins = jnp.asarray(bins, jnp.float32)
    square = jnp.square(bins[:, None] - bins).sum(-1)
    kernel = jax.nn.softmax(-square / (2 * sigma**2), 0)  # the mass of a bin is spread
    p = jnp.matmul(kernel, frequency / jnp.sum(frequency), precision=EXACT)
    weights = 1 / ((1 - mix) * p + mix / len(p))
    return weights / jnp.sum(p * weights)


def annealed_mean(logits: jax.Array, bins: jax.Array | np.ndarray, temperature: float = 0.38) -> jax.Array:
    """Returns the mean colour of a sharpened distribution, [..., 2] (Zhang et al. 2016, eq. 5).

    Args:
        logits: [..., Q].
        bins: [Q, 2].
        temperature: 1: the mean; towards 0: the mode.
    """
    p = jax.nn.softmax(logits.astype(jnp.float32) / temperature, -1)
    return jnp.matmul(p, jnp.asarray(bins, jnp.float32), precision=EXACT)
