"""Positions: rotary and its scalings, sinusoidal, 2-D sine-cosine, biases by distance, stretched tables."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.registry import Registry
from ssljax.base.schema import setting


@dataclasses.dataclass(frozen=True)
class Linear:
    """Positions divided by `factor` (Chen et al. 2023, position interpolation)."""

    factor: float = setting(gt=0)

    def __call__(self, width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
        return _frequencies(width, theta) / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """The base grows with sequences longer than `original_len` ("dynamic NTK")."""

    factor: float = setting(gt=0)
    original_len: int = setting(ge=1)

    def __call__(self, width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
        grown = self.factor * max(length, self.original_len) / self.original_len - (self.factor - 1)
        return _frequencies(width, theta * grown ** (width / (width - 2))), 1.0


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Long wavelengths divided by `factor`, short ones kept, those between blended (Llama team 2024, Llama 3.1)."""

    factor: float = setting(8.0, gt=0)
    low: float = setting(1.0, gt=0)  # wavelengths over original_len / low are divided
    high: float = setting(4.0, gt=0)  # wavelengths under original_len / high are kept
    original_len: int = setting(8192, ge=1)

    def __call__(self, width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
        frequencies = _frequencies(width, theta)
        turns = self.original_len * frequencies / (2 * math.pi)  # of each frequency over the original context
        keep = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequencies * (keep + (1 - keep) / self.factor), 1.0


@dataclasses.dataclass(frozen=True)
class YaRN:
    """Blend by number of turns, and a temperature of the logits (Peng et al. 2023, section 3)."""

    factor: float = setting(gt=0)
    original_len: int = setting(ge=1)
    beta_fast: float = setting(32.0, gt=0)
    beta_slow: float = setting(1.0, gt=0)
    attention_factor: float | None = setting(None, gt=0)  # multiplies cosines and sines; None: 0.1 ln(factor) + 1
    truncate: bool = True  # the ends of the blend are whole numbers

    def __call__(self, width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
        frequencies = _frequencies(width, theta)

        def index(turns: float) -> float:
            """Which frequency makes so many turns over the original context."""
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


SCALINGS = Registry(
    "rotary scaling",
    {
        "linear": "ssljax.layers.positions:Linear",
        "dynamic": "ssljax.layers.positions:Dynamic",
        "llama3": "ssljax.layers.positions:Llama3",
        "yarn": "ssljax.layers.positions:YaRN",
    },
)


def _frequencies(width: int, theta: float) -> np.ndarray:
    return theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)


def _unscaled(width: int, theta: float, length: int) -> tuple[np.ndarray, float]:
    return _frequencies(width, theta), 1.0


def rotary_tables(
    positions: jax.Array, width: int, theta: float, scaling: object = None, length: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B or 1, T, 1, ceil(width / 2)] for positions int [B or 1, T] (Su 2021, section 3.4.2).

    Args:
        positions: of the tokens.
        width: how many elements of a head are turned.
        theta: base of the frequencies.
        scaling: one of SCALINGS, for contexts longer than the model was trained on.
        length: of the sequence, where the scaling depends on it.
    """
    frequencies, factor = (scaling or _unscaled)(width, theta, length)  # type: ignore[operator]
    angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns x [B, T, H, K] by its position; of the first R elements, R twice the width of the tables, element i pairs
    with element i + R/2 (the layout of NeoX and LLaMA). The others stay."""
    cos, sin = tables
    half = cos.shape[-1]
    a, b, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x.dtype)


def alibi_slopes(heads: int) -> np.ndarray:
    """float32 [H]: what a head's logits lose for each token of distance (Press et al. 2022, section 3)."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    # Other numbers of heads: those of the power of two below, then every second one of the power above.
    between = 2.0 ** (-4 / power * np.arange(1, 2 * (heads - power), 2))
    return np.concatenate([slopes, between]).astype(np.float32)


def relative_buckets(distance: np.ndarray, buckets: int, max_distance: int, both: bool) -> np.ndarray:
    """Bucket of key position - query position: exact when near, logarithmic when far (Raffel 2020, section 2.1).

    Args:
        distance: int, any shape.
        buckets: how many there are.
        max_distance: from here on all distances share the last bucket.
        both: keys after the query have the upper half of the buckets; else they count as distance 0.
    """
    if both:
        buckets //= 2
        base, far = np.where(distance > 0, buckets, 0), np.abs(distance)
    else:
        base, far = np.zeros_like(distance), np.maximum(-distance, 0)
    exact = buckets // 2
    # float32, as the models that were trained with it: the edges of buckets depend on it.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / math.log(max_distance / exact)
    large = np.minimum(exact + (ratio * (buckets - exact)).astype(np.int32), buckets - 1)
    return base + np.where(far < exact, far, large)


def sinusoidal(positions: np.ndarray, width: int, theta: float = 10_000.0) -> np.ndarray:
    """float32 [..., width]: sines in the first half, cosines in the second (Vaswani 2017, section 3.5, reordered)."""
    frequencies = theta ** (-np.arange(width // 2) / (width / 2))
    angles = np.asarray(positions, np.float64)[..., None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """float32 [rows * columns, width]: half of the width tells the column, half the row (He 2022, MAE)."""
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return np.concatenate([sinusoidal(column.ravel(), width // 2), sinusoidal(row.ravel(), width // 2)], axis=-1)


def rotary_2d(grid: tuple[int, int], width: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines float32 [rows * columns, width / 2] of patches (Siméoni 2025, DINOv3, section 3.1).

    A patch stands at its centre, both coordinates from -1 to 1 whatever the grid; the first half of the angles turns
    by its row, the second by its column.
    """
    centres = [(np.arange(n) + 0.5) / n * 2 - 1 for n in grid]
    where = np.stack(np.meshgrid(*centres, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = (2 * np.pi * where * _frequencies(width // 2, theta)).reshape(len(where), -1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class Pairs(NamedTuple):
    """Which row of a table of biases each pair of tokens reads."""

    rows: np.ndarray  # int [T, T]
    stretch: np.ndarray | None = None  # float32 [R', R]: the table at another grid, from the learned one


def grid_rows(grid: tuple[int, int]) -> int:
    """Rows of a table of biases: a distance in rows and one in columns, and three for tokens that are no patches."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def grid_pairs(grid: tuple[int, int], own: tuple[int, int], prefix: int) -> Pairs:
    """Pairs of `prefix` tokens and the patches of a grid, for a table that was learned at the grid `own`.

    The last rows of the table are: of a token before the patches to a patch, of a patch to it, between two of them
    (Bao 2022, BEiT, after Liu 2021, Swin, section 3.2). Distances at another grid are stretched, linearly.
    """
    where = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 2)
    distance = where[:, None] - where[None] + np.asarray(grid) - 1
    rows, tokens = grid_rows(grid), prefix + len(where)
    index = np.full((tokens, tokens), rows - 1)
    index[:prefix, prefix:], index[prefix:, :prefix] = rows - 3, rows - 2
    index[prefix:, prefix:] = distance[..., 0] * (2 * grid[1] - 1) + distance[..., 1]
    if grid == own:
        return Pairs(index)
    stretch = np.zeros((rows, grid_rows(own)), np.float32)
    both = [_resampling(2 * old - 1, 2 * new - 1, _LINEAR) for old, new in zip(own, grid)]
    stretch[:-3, :-3], stretch[-3:, -3:] = np.kron(*both), np.eye(3)
    return Pairs(index, stretch)


def resize_table(
    table: jax.Array, grid: tuple[int, int], new_grid: tuple[int, int], antialias: bool = False
) -> jax.Array:
    """A learned table [rows * columns, D] at another grid, bicubic (Dosovitskiy 2021, section 3.2).

    `antialias`: a smaller grid averages over more of the old points, as a photograph is shrunk.
    """
    if grid == new_grid:
        return table
    matrix = _antialiased if antialias else functools.partial(_resampling, kernel=_CUBIC)
    rows, columns = (jnp.asarray(matrix(old, new)) for old, new in zip(grid, new_grid))
    return jnp.einsum("yr,rcd,xc->yxd", rows, table.reshape(*grid, -1), columns).reshape(-1, table.shape[-1])


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel (Keys 1981, equation 4), with the a of the trainers of published vision transformers."""
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


_LINEAR, _CUBIC = (_linear, 1), (_cubic, 2)  # and how far each reaches


def _resampling(old: int, new: int, kernel: tuple[Callable[[np.ndarray], np.ndarray], int]) -> np.ndarray:
    """float32 [new, old]: each new point from the old ones around it; beyond the border stands what is at it."""
    weigh, reach = kernel
    matrix = np.zeros((new, old))
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    for offset in range(1 - reach, reach + 1):
        near = np.floor(centre).astype(int) + offset
        np.add.at(matrix, (np.arange(new), np.clip(near, 0, old - 1)), weigh(np.abs(centre - near)))
    return matrix.astype(np.float32)


def _antialiased(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: cubic, over as many old points more as there are fewer new ones; none beyond the border.

    Its a is -0.5 (Keys 1981), as image libraries and with them the trainers have it.
    """
    apart = np.abs(np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * old / new)
    matrix = _cubic(apart / max(old / new, 1), -0.5)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
