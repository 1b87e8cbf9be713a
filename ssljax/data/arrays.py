"""Sources that hold arrays: `npz:` files of NumPy, `idx:` files of MNIST."""

import contextlib
import gzip
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.sources import Blobs, Column, Table, find_files, stamp
from ssljax.data.splits import Split


@contextlib.contextmanager
def _readable(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Turns what damaged files raise into one line."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"data.source: {path} is damaged or not {kind} ({error})") from error


class Npz:
    """`npz:PATH`: the arrays of a .npz file; `{split}` in the path names one file a split.

    A column `bytes@offsets` is encoded images in one uint8 array: file i is bytes[offsets[i] : offsets[i + 1]].
    """

    def __init__(self, location: str):
        self.location = location

    def fingerprint(self, split: Split) -> Any:
        return stamp(find_files(self.location, split)[0])

    def table(self, split: Split) -> Table:
        paths, splits = find_files(self.location, split)
        path = paths[0]
        if len(paths) > 1:
            raise UserError(f"data.source: npz:{self.location} matches {len(paths)} files, must be one ({path}, ...)")
        with _readable(path, "an npz file"), np.load(path, allow_pickle=False) as archive:
            names = tuple(archive.files)

        def read(name: str) -> np.ndarray:
            with _readable(path, "an npz file"), np.load(path, allow_pickle=False) as archive:
                return archive[name]

        def get(name: str) -> Column:
            data, at, offsets = name.partition("@")
            return _blobs(read(data), read(offsets), f"{path}, {data}") if at else read(name)

        return Table(names, get, splits)


def _blobs(data: np.ndarray, offsets: np.ndarray, title: str) -> Blobs:
    ends = np.asarray(offsets)
    if data.ndim != 1 or data.dtype != np.uint8 or ends.ndim != 1 or not np.issubdtype(ends.dtype, np.integer):
        raise UserError(f"data.keys: {title}: 'bytes@offsets' needs a flat uint8 array and flat integer offsets")
    if len(ends) < 2 or ends[0] < 0 or ends[-1] > len(data) or (np.diff(ends) < 0).any():
        raise UserError(f"data.keys: {title}: offsets must rise from 0 to the length of the bytes ({len(data)})")
    return Blobs(len(ends) - 1, lambda i: data[ends[i] : ends[i + 1]].tobytes(), lambda i: f"{title}, row {i}")


_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


class Idx:
    """`idx:PATH`: one array in the format of the MNIST files (LeCun et al., 1998), .gz too.

    Its column is called `label` if it has one axis, else `image`; join the two files with `+`.
    """

    def __init__(self, location: str):
        self.location = location

    def fingerprint(self, split: Split) -> Any:
        return stamp(find_files(self.location, split)[0])

    def table(self, split: Split) -> Table:
        paths, splits = find_files(self.location, split)
        path = paths[0]
        if len(paths) > 1:
            raise UserError(f"data.source: idx:{self.location} matches {len(paths)} files, must be one ({path}, ...)")
        with _readable(path, "an idx file"):
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            zeros, code, axes = struct.unpack(">HBB", content[:4])
            if zeros or code not in _IDX_TYPES or not axes:
                raise ValueError("no idx header")
            shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
            array = np.frombuffer(content, _IDX_TYPES[code], offset=4 + 4 * axes).reshape(shape)
        array = array.astype(array.dtype.newbyteorder("="))
        return Table(("label" if array.ndim == 1 else "image",), lambda name: array, splits)
