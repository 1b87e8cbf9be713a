"""Arrays of a split whose rows are decoded when they are read."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Read = Callable[[np.ndarray], dict[str, np.ndarray]]  # numbers of rows [B] -> the arrays [B, ...] of all elements


class LazyRows:
    """An array [N, ...] of an element of images or sounds, whose rows are decoded when they are read.

    Args:
        element: its shape and dtype, as in `DataSpec.elements`.
        key: its name.
        read: decodes rows.
        rows: int64 [N], numbers among the selected rows, none damaged.
        memo: the last rows that were decoded, shared by the elements.
    """

    def __init__(
        self,
        element: Mapping[str, Any],
        key: str,
        read: Read,
        rows: np.ndarray,
        memo: dict[bytes, dict[str, np.ndarray]],
    ):
        self._element, self._key, self._read, self._rows, self._memo = element, key, read, rows, memo
        self.shape, self.dtype = (len(rows), *element["shape"]), np.dtype(element["dtype"])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns rows, decoded; `index` is a number, a slice or an array of numbers."""
        rows = np.atleast_1d(self._rows[index])
        arrays = self._memo.get(rows.tobytes())
        if arrays is None:
            arrays = self._read(rows)
            if len(arrays) > 1:  # the other elements of these rows are read next
                self._memo.clear()
                self._memo[rows.tobytes()] = arrays
        return arrays[self._key] if np.ndim(self._rows[index]) else arrays[self._key][0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read(self._rows)[self._key].astype(dtype or self.dtype, copy=False)

    def select(self, index: Any) -> "LazyRows":
        """Returns some rows, not decoded."""
        return LazyRows(self._element, self._key, self._read, self._rows[index], self._memo)


def lazy(elements: Mapping[str, Mapping[str, Any]], read: Read, rows: np.ndarray) -> dict[str, LazyRows]:
    """Returns the elements of images or sounds as `LazyRows`, which decode each row once for all elements."""
    memo: dict[bytes, dict[str, np.ndarray]] = {}
    return {key: LazyRows(element, key, read, rows, memo) for key, element in elements.items()}
