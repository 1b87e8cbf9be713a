"""Sources of arrays: `npz:` files of NumPy and `idx:` files of MNIST."""

import pathlib
import struct
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.file_source import FileSource, read_bytes, reading
from ssljax.data.files import local_file
from ssljax.data.sources import Blobs, Column, OnDemand, Table
from ssljax.data.splits import Split


class Npz(FileSource):
    """`npz:PATH`: the arrays of a .npz file, one file for each split if the path has `{split}`.

    A column `A@offsets` has rows of several lengths, joined in one array: row i is A[offsets[i] : offsets[i + 1]]. They
    are the bytes of an encoded image or sound if A is uint8, and the samples of a clip otherwise.
    """

    kind = "npz"
    single = True

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        (path,) = paths
        with reading(path, "an npz file"), _opened(path) as archive:
            names = tuple(archive.files)

        def array(name: str) -> np.ndarray:
            with reading(path, "an npz file"), _opened(path) as archive:
                array = archive[name]
            if not array.ndim:
                raise UserError(f"data.keys: {name} of {path} is a single value, must be an array with rows")
            return array

        def get(name: str) -> Column:
            data, at, offsets = name.partition("@")
            return _rows(array(data), array(offsets), f"{path}, {data}") if at else array(name)

        return Table(names, get)


def _opened(path: pathlib.Path) -> Any:
    """Returns the archive of an npz file. Raises ValueError for the other formats that NumPy reads."""
    archive = np.load(local_file(path), allow_pickle=False)
    if not hasattr(archive, "files"):
        raise ValueError("a single array (.npy); write it with numpy.savez")
    return archive


def _rows(data: np.ndarray, offsets: np.ndarray, title: str) -> Blobs | OnDemand:
    """Returns a column of encoded files, or of arrays of several lengths.

    Raises:
        UserError: wrong shapes or dtypes, or offsets that do not increase within the data.
    """
    if data.ndim != 1 or offsets.ndim != 1 or not np.issubdtype(offsets.dtype, np.integer):
        raise UserError(f"data.keys: {title}: 'A@offsets' needs a flat array and flat integer offsets")
    if len(offsets) < 2 or offsets[0] < 0 or offsets[-1] > len(data) or (np.diff(offsets) < 0).any():
        raise UserError(f"data.keys: {title}: offsets must increase from 0 to the length of the array ({len(data)})")
    row = lambda i: data[offsets[i] : offsets[i + 1]]  # noqa: E731
    if data.dtype == np.uint8:
        return Blobs(len(offsets) - 1, lambda i: row(i).tobytes(), lambda i: f"{title}, row {i}")
    return OnDemand(len(offsets) - 1, row)


_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


class Idx(FileSource):
    """`idx:PATH`: one array in the format of the MNIST files (LeCun et al., 1998), also compressed (.gz).

    Its column is called `label` if it has one axis, and `image` otherwise. Join two files with `+`.
    """

    kind = "idx"
    single = True

    def read(self, paths: list[pathlib.Path], split: Split) -> Table:
        (path,) = paths
        with reading(path, "an idx file"):
            array = _parse_idx(read_bytes(path))
        return Table(("label" if array.ndim == 1 else "image",), lambda name: array)


def _parse_idx(content: bytes) -> np.ndarray:
    """Returns the array of an idx file in native byte order. Raises ValueError or struct.error if it is damaged."""
    zeros, code, axes = struct.unpack(">HBB", content[:4])
    if zeros or code not in _IDX_TYPES or not axes:
        raise ValueError("no idx header")
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    array = np.frombuffer(content, _IDX_TYPES[code], offset=4 + 4 * axes).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="))
