"""Learned biases for distances in rows and columns of patches (Bao et al. 2022, BEiT)."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.schema import fixed
from ssljax.layers.dense import EXACT, parameter
from ssljax.layers.positions import linear_resampling
from ssljax.layers.terms.base import Heads, Pairs, Term


@dataclasses.dataclass(frozen=True)
class GridKeys:
    """The constants of the scheme, inherited by `BlockConfig`."""

    layer_bias: bool = fixed(
        False, doc='position_bias "grid": each layer learns its own table; false: all layers share one'
    )
    bias_rows: int = fixed(0, doc='position_bias "grid": number of rows of the table')


class GridPairs(NamedTuple):
    """The row of the table for each pair of tokens."""

    rows_TxT: Any  # int
    # float32 [R', R], resizes the learned table of R rows to R' rows for the current grid; None: the grids are equal.
    stretch: Any = None


class GridBias(Term):
    """A learned bias per distance and head: parameter `relative_bias` [R, H], of the stack or of each layer."""

    def prepare(self, stack: nn.Module, pairs: Pairs) -> Any:
        grid = pairs.layout.grid
        if grid is None:
            raise UserError("position_bias: 'grid' needs a complete grid of patches")
        state = grid_pairs(grid.shape, grid.trained, grid.prefix)
        return state if self.config.layer_bias else self._bias(stack, state)

    def logits(self, attention: Any, heads: Heads, state: Any) -> jax.Array:
        return self._bias(attention, state) if self.config.layer_bias else state

    def _bias(self, module: nn.Module, pairs: GridPairs) -> jax.Array:
        """Biases [1, H, T, T] from the table of a module."""
        shape = (self.config.bias_rows, self.config.known("heads"))
        init, names = nn.initializers.zeros, (None, "heads")
        table_RxH = parameter(module, "relative_bias", init, names, shape, role="position")
        if pairs.stretch is not None:
            table_RxH = jnp.matmul(jnp.asarray(pairs.stretch), table_RxH, precision=EXACT)
        return table_RxH[jnp.asarray(pairs.rows_TxT)].transpose(2, 0, 1)[None]


def grid_rows(grid: tuple[int, int]) -> int:
    """Number of rows of the table: one per (row, column) distance of `grid`, and three for pairs with other tokens."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def grid_pairs(grid: tuple[int, int], trained: tuple[int, int], prefix: int) -> GridPairs:
    """Rows of the table for all pairs of tokens: `prefix` tokens, then the patches of `grid`.

    The last three rows are for the pairs (prefix token, patch), (patch, prefix token) and (prefix token, prefix token)
    (Bao et al. 2022, after Liu et al. 2021, Swin, section 3.2).

    Args:
        grid: (rows, columns) of the current image.
        trained: (rows, columns) for which the table was learned; if they differ from `grid`, the table is resized
            linearly.
        prefix: number of tokens before the patches.
    """
    patch_Nx2 = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 2)
    distance_NxNx2 = patch_Nx2[:, None] - patch_Nx2[None] + np.asarray(grid) - 1
    rows, tokens = grid_rows(grid), prefix + len(patch_Nx2)
    row_TxT = np.full((tokens, tokens), rows - 1)
    row_TxT[:prefix, prefix:], row_TxT[prefix:, :prefix] = rows - 3, rows - 2
    row_TxT[prefix:, prefix:] = distance_NxNx2[..., 0] * (2 * grid[1] - 1) + distance_NxNx2[..., 1]
    if grid == trained:
        return GridPairs(row_TxT)
    stretch = np.zeros((rows, grid_rows(trained)), np.float32)
    both = [linear_resampling(2 * old - 1, 2 * new - 1) for old, new in zip(trained, grid)]
    stretch[:-3, :-3], stretch[-3:, -3:] = np.kron(*both), np.eye(3)
    return GridPairs(row_TxT, stretch)
