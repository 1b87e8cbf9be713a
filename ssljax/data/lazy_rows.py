"""Arrays of a split whose rows are decoded when they are read."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class Decoder(Protocol):
    """The images or sounds of a column.

    Attributes:
        elements: keys of the batch, with shape and dtype.
    """

    @property
    def elements(self) -> Mapping[str, Any]: ...

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays [B, ...] of `elements` of some of the selected rows."""


class LazyRows:
    """An array [N, ...] of an element of images or sounds, whose rows are decoded when they are read.

    Args:
        decoder: the images or sounds.
        key: an element of them.
        rows: int64 [N], numbers among the selected rows, none damaged.
        memo: the last rows that were decoded, shared by the elements.
    """

    def __init__(self, decoder: Decoder, key: str, rows: np.ndarray, memo: dict[bytes, dict[str, np.ndarray]]):
        self._decoder, self._key, self._rows, self._memo = decoder, key, rows, memo
        element = decoder.elements[key]
        self.shape, self.dtype = (len(rows), *element["shape"]), np.dtype(element["dtype"])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns rows, decoded; `index` is a number, a slice or an array of numbers."""
        rows = np.atleast_1d(self._rows[index])
        arrays = self._memo.get(rows.tobytes())
        if arrays is None:
            arrays = self._decoder.read(rows)
            if len(arrays) > 1:  # the other elements of these rows are read next
                self._memo.clear()
                self._memo[rows.tobytes()] = arrays
        return arrays[self._key] if np.ndim(self._rows[index]) else arrays[self._key][0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._decoder.read(self._rows)[self._key].astype(dtype or self.dtype, copy=False)

    def select(self, index: Any) -> "LazyRows":
        """Returns some rows, not decoded."""
        return LazyRows(self._decoder, self._key, self._rows[index], self._memo)


def lazy(decoder: Decoder, rows: np.ndarray) -> dict[str, LazyRows]:
    """Returns the elements of images or sounds as `LazyRows`."""
    memo: dict[bytes, dict[str, np.ndarray]] = {}
    return {key: LazyRows(decoder, key, rows, memo) for key in decoder.elements}
