"""Positions: rotary, sinusoidal, 2-D sine-cosine, and tables that are stretched to another image size."""

import jax
import jax.numpy as jnp
import numpy as np


def rotary_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B or 1, T, 1, head_dim / 2] for positions int [B or 1, T] (Su 2021, section 3.4.2)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns x [B, T, H, K] by its position; element i pairs with element i + K/2 (the layout of NeoX and LLaMA)."""
    cos, sin = tables
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def sinusoidal(positions: np.ndarray, width: int, theta: float = 10_000.0) -> np.ndarray:
    """float32 [..., width]: sines in the first half, cosines in the second (Vaswani 2017, section 3.5, reordered)."""
    frequencies = theta ** (-np.arange(width // 2) / (width / 2))
    angles = np.asarray(positions, np.float64)[..., None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """float32 [rows * columns, width]: half of the width tells the column, half the row (He 2022, MAE)."""
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return np.concatenate([sinusoidal(column.ravel(), width // 2), sinusoidal(row.ravel(), width // 2)], axis=-1)


def resize_table(table: jax.Array, grid: tuple[int, int], new_grid: tuple[int, int]) -> jax.Array:
    """A learned table [rows * columns, D] at another grid, bicubic (Dosovitskiy 2021, section 3.2)."""
    if grid == new_grid:
        return table
    square = table.reshape(*grid, -1)
    square = jax.image.resize(square, (*new_grid, square.shape[-1]), "bicubic", antialias=False)
    return square.reshape(-1, square.shape[-1])
