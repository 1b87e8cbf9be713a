"""Positions of tokens: rotary tables and their scalings, sinusoids in one and two dimensions, resized position tables.

A scaling of rotary positions is called with (width, theta, length): width of the rotated part of a head, base of the
frequencies, and length of the sequence. It returns the frequencies, float64 [ceil(width / 2)], and a factor of cosines
and sines.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.registry import Registry
from ssljax.base.schema import setting


@dataclasses.dataclass(frozen=True)
class Linear:
    """Position interpolation (Chen et al. 2023): positions are divided by `factor`."""

    factor: float = setting(gt=0, doc="ratio of the new context length to the original one")

    def __call__(self, width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
        return _frequencies(width, theta) / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """ "Dynamic NTK": the base of the frequencies grows with the length of sequences beyond `original_len`."""

    factor: float = setting(gt=0, doc="ratio of the new context length to the original one")
    original_len: int = setting(ge=1, doc="context length of training in tokens")

    def __call__(self, width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
        stretch = self.factor * max(length, self.original_len) / self.original_len - (self.factor - 1)
        return _frequencies(width, theta * stretch ** (width / (width - 2))), 1.0


@dataclasses.dataclass(frozen=True)
class Llama3:
    """LLaMA 3.1 (Llama team 2024): low frequencies are divided by `factor`, high ones kept, others interpolated."""

    factor: float = setting(8.0, gt=0, doc="divisor of the frequencies of long wavelengths")
    low: float = setting(1.0, gt=0, doc="frequencies with wavelengths over original_len / low are divided by factor")
    high: float = setting(4.0, gt=0, doc="frequencies with wavelengths under original_len / high are kept")
    original_len: int = setting(8192, ge=1, doc="context length of training in tokens")

    def __call__(self, width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
        frequencies = _frequencies(width, theta)
        turns = self.original_len * frequencies / (2 * math.pi)  # full rotations over the original context
        keep = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequencies * (keep + (1 - keep) / self.factor), 1.0


@dataclasses.dataclass(frozen=True)
class YaRN:
    """YaRN (Peng et al. 2023, section 3): low frequencies are divided by `factor`, and logits get a temperature.

    A frequency is kept if it makes more than `beta_fast` full turns over the original context, divided by `factor` if
    it makes fewer than `beta_slow`, and interpolated otherwise.
    """

    factor: float = setting(gt=0, doc="ratio of the new context length to the original one")
    original_len: int = setting(ge=1, doc="context length of training in tokens")
    beta_fast: float = setting(32.0, gt=0, doc="turns over the original context above which frequencies are kept")
    beta_slow: float = setting(
        1.0, gt=0, doc="turns over the original context below which frequencies are divided by factor"
    )
    attention_factor: float | None = setting(None, gt=0, doc="factor of cosines and sines; None: 0.1 ln(factor) + 1")
    truncate: bool = setting(True, doc="round the ends of the interpolated range to whole indices of frequencies")

    def __call__(self, width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
        frequencies = _frequencies(width, theta)

        def index(turns: float) -> float:
            """Index (fractional) of the frequency that makes `turns` turns over the original context."""
            return width / 2 * math.log(self.original_len / (turns * 2 * math.pi)) / math.log(theta)

        low, high = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        ramp = np.clip((np.arange(len(frequencies)) - low) / (high - low or 0.001), 0, 1)
        factor = self.attention_factor
        if factor is None:
            factor = 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0
        return frequencies * (1 - ramp + ramp / self.factor), factor


@dataclasses.dataclass(frozen=True)
class LongRoPE:
    """LongRoPE (Ding et al. 2024): each frequency has a divisor, another one in sequences beyond `original_len`."""

    short_factor: tuple[float, ...] = setting(gt=0, doc="divisors of the frequencies, up to `original_len` tokens")
    long_factor: tuple[float, ...] = setting(gt=0, doc="divisors of the frequencies in longer sequences")
    original_len: int = setting(ge=1, doc="context length of training in tokens")
    attention_factor: float = setting(1.0, gt=0, doc="factor of cosines and sines")

    def __call__(self, width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
        frequencies = _frequencies(width, theta)
        for name in ("short_factor", "long_factor"):
            if len(getattr(self, name)) != len(frequencies):
                got = len(getattr(self, name))
                raise UserError(
                    f"rope_scaling.{name}: got {got} numbers, must be {len(frequencies)}, one per frequency"
                )
        divisors = self.long_factor if length > self.original_len else self.short_factor
        return frequencies / np.asarray(divisors), self.attention_factor


SCALINGS = Registry(
    "rotary scaling",
    {
        "linear": "ssljax.layers.positions:Linear",
        "dynamic": "ssljax.layers.positions:Dynamic",
        "llama3": "ssljax.layers.positions:Llama3",
        "yarn": "ssljax.layers.positions:YaRN",
        "longrope": "ssljax.layers.positions:LongRoPE",
    },
    has=("__dataclass_fields__", "__call__"),
)


def _frequencies(width: int, theta: float) -> np.ndarray:
    """theta^(-2i / width) for i = 0, 1, ...: float64 [ceil(width / 2)]."""
    return theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)


def _unscaled(width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
    return _frequencies(width, theta), 1.0


class Grid(NamedTuple):
    """Patches of an image in rows and columns, after `prefix` tokens that are not patches."""

    shape: tuple[int, int]  # rows, columns
    trained: tuple[int, int]  # rows and columns for which position tables were learned
    prefix: int


class Layout(NamedTuple):
    """Positions, segments and grid of the tokens of a stack."""

    positions: jax.Array | None = None  # int [B or 1, T]; None: 0..T-1
    segments: jax.Array | None = None  # int [B, T], read by position terms that depend on segments
    grid: Grid | None = None  # None: the tokens are no complete grid of patches
    # Cosines and sines, [B or 1, T, 1, R / 2] each; None: computed from `positions`.
    rotary: tuple[jax.Array, jax.Array] | None = None


def rotary_tables(
    positions: jax.Array, width: int, theta: float, scaling: object = None, length: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for `rotate`, float32 [B or 1, T, 1, ceil(width / 2)] each (Su et al. 2021, section 3.4.2).

    Args:
        positions: int [B or 1, T], positions of the tokens.
        width: number of rotated elements of a head.
        theta: base of the frequencies.
        scaling: an instance of a class of SCALINGS; None: no scaling.
        length: length of the sequence, for scalings that depend on it.
    """
    frequencies, factor = (scaling or _unscaled)(width, theta, length)  # type: ignore[operator]
    angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates queries or keys x [B, T, H, K] by the angles of their positions.

    Element i is paired with element i + R/2 (the layout of GPT-NeoX and LLaMA), where R/2 is the last axis of the
    tables. Elements from R on are unchanged.
    """
    cos, sin = tables
    half = cos.shape[-1]
    a, b, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x.dtype)


def sinusoidal(positions: np.ndarray, width: int, theta: float = 10_000.0) -> np.ndarray:
    """Sinusoidal position embeddings, float32 [..., width]: all sines, then all cosines.

    Vaswani et al. 2017, section 3.5, interleave them. positions: [...]; width: even.
    """
    frequencies = theta ** (-np.arange(width // 2) / (width / 2))
    angles = np.asarray(positions, np.float64)[..., None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """Sinusoidal embeddings of a grid, float32 [rows * columns, width] (He et al. 2022, MAE).

    The first half of a vector encodes the column, the second half the row. grid: (rows, columns); width: multiple of 4.
    """
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return np.concatenate([sinusoidal(column.ravel(), width // 2), sinusoidal(row.ravel(), width // 2)], axis=-1)


def rotary_2d(grid: tuple[int, int], width: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of a grid, float32 [rows * columns, width / 2] each (Siméoni et al. 2025, DINOv3, section 3.1).

    Coordinates of patch centres are scaled to -1..1 on both axes. The first half of the angles encodes the row, the
    second half the column.
    """
    centres = [(np.arange(n) + 0.5) / n * 2 - 1 for n in grid]
    centre_Nx2x1 = np.stack(np.meshgrid(*centres, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = (2 * np.pi * centre_Nx2x1 * _frequencies(width // 2, theta)).reshape(len(centre_Nx2x1), -1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def resize_table(
    table: jax.Array, grid: tuple[int, int], new_grid: tuple[int, int], antialias: bool = False
) -> jax.Array:
    """Resizes a position table [rows * columns, D] to another grid, bicubically (Dosovitskiy et al. 2021, section 3.2).

    Args:
        table: learned embeddings of the positions of `grid`, row by row.
        grid: (rows, columns) of the table.
        new_grid: (rows, columns) of the result.
        antialias: average over more of the old points when the grid shrinks, as image libraries do.
    """
    if grid == new_grid:
        return table
    matrix = _antialiased if antialias else functools.partial(_resampling, kernel=_CUBIC)
    rows, columns = (jnp.asarray(matrix(old, new)) for old, new in zip(grid, new_grid))
    exact = jax.lax.Precision.HIGHEST
    stretched = jnp.einsum("yr,rcd,xc->yxd", rows, table.reshape(*grid, -1), columns, precision=exact)
    return stretched.reshape(-1, table.shape[-1])


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Cubic convolution kernel of a distance x (Keys 1981, equation 4); a = -0.75 as in published ViTs."""
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


_LINEAR, _CUBIC = (_linear, 1), (_cubic, 2)  # (kernel, radius in old points)


def linear_resampling(old: int, new: int) -> np.ndarray:
    """Linear interpolation from `old` to `new` points as a matrix, float32 [new, old]."""
    return _resampling(old, new, _LINEAR)


def _resampling(old: int, new: int, kernel: tuple[Callable[[np.ndarray], np.ndarray], int]) -> np.ndarray:
    """Interpolation from `old` to `new` points as a matrix, float32 [new, old]; border values continue outside.

    kernel: (weight as a function of distance, radius in old points).
    """
    weigh, radius = kernel
    matrix = np.zeros((new, old))
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    for offset in range(1 - radius, radius + 1):
        near = np.floor(centre).astype(int) + offset
        np.add.at(matrix, (np.arange(new), np.clip(near, 0, old - 1)), weigh(np.abs(centre - near)))
    return matrix.astype(np.float32)


def _antialiased(old: int, new: int) -> np.ndarray:
    """Antialiased cubic interpolation as a matrix, float32 [new, old]: the kernel is old / new times wider.

    Points beyond the border have no weight. a = -0.5 (Keys 1981), as in image libraries.
    """
    distance = np.abs(np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * old / new)
    matrix = _cubic(distance / max(old / new, 1), -0.5)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
