"""Columns of pictures as one uint8 array [N, H, W, C]; what had to be decoded is kept on disk."""

import concurrent.futures
import io
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.data.cache import build_once
from ssljax.data.sources import Blobs, Column, Rows

if TYPE_CHECKING:
    from PIL.Image import Image


class Images:
    """The pictures of some rows. Arrays are used as they are; encoded pictures are decoded once, on first use.

    `fingerprint` is that of the part that the rows were read from: it names the decoded pictures on disk.
    """

    def __init__(self, rows: Rows, key: str, fingerprint: Any, size: int | None, root: pathlib.Path):
        self.rows, self.key, self.size, self.root = rows, key, size, root
        self.column = _checked(rows.columns[key], key, rows.title)
        self.fingerprint = fingerprint
        self._array: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[H, W, C] of one picture; decodes one at most."""
        return (self._one(0) if self._array is None else self._array[0]).shape

    def array(self) -> np.ndarray:
        """uint8 [N, H, W, C].

        Raises:
            UserError: a picture that cannot be decoded, or that has another shape than the first.
        """
        if self._array is None:
            if isinstance(self.column, np.ndarray) and (
                self.size is None or self.column.shape[1:3] == (self.size,) * 2
            ):
                whole = len(self.rows.index) == len(self.column)
                self._array = self.column if whole else self.column[self.rows.index]
            else:
                key = digest(["images", 1, self.fingerprint, self.key, self.size])
                folder = build_once(self.root / f"images-{key}", self._build)
                self._array = np.load(folder / "images.npy", mmap_mode="r")
        return self._array

    def _one(self, i: int) -> np.ndarray:
        row = int(self.rows.index[i])
        if isinstance(self.column, np.ndarray):
            return _fitted(self.column[row], self.size)
        return _decode(self.column, row, self.size)

    def _build(self, folder: pathlib.Path) -> None:
        count, shape, path = len(self.rows.index), self.shape, folder / "images.npy"
        out = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *shape))
        with path.open("r+b") as file:  # take the space now: a full disk under a mapped file kills without a word
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

        def fill(numbers: np.ndarray) -> None:
            for i in numbers:
                image = self._one(i)
                if image.shape != shape:
                    told = " and ".join(f"{self._name(j)} is {_text(s)}" for j, s in ((0, shape), (i, image.shape)))
                    raise UserError(f"data.source: images of mixed shapes: {told}; set data.image_size to resize them")
                out[i] = image

        # Pillow frees the interpreter while it decodes, so threads are enough.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            chunks = np.array_split(np.arange(count), max(1, count // 64))
            _first_error(pool, fill, chunks)
        out.flush()

    def _name(self, i: int) -> str:
        row = int(self.rows.index[i])
        return self.column.name(row) if isinstance(self.column, Blobs) else f"row {row} of {self.rows.title}"


def _first_error(pool: concurrent.futures.ThreadPoolExecutor, work: Callable, items: list) -> None:
    """Runs work on all items; raises the error of the earliest item that failed, the same on every run."""
    futures = [pool.submit(work, item) for item in items]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()


def _checked(column: Column, key: str, title: str) -> np.ndarray | Blobs:
    if isinstance(column, list):
        raise UserError(f"data.keys.{key}: a column of {type(column[0]).__name__} values of {title} holds no images")
    if isinstance(column, np.ndarray):
        if column.dtype != np.uint8 or column.ndim not in (3, 4):
            raise UserError(
                f"data.keys.{key}: got {column.dtype} {_text(column.shape)} in {title}, images are uint8 (0 to 255) of "
                f"shape [N, H, W] or [N, H, W, C]"
            )
        column = column[..., None] if column.ndim == 3 else column
        if column.shape[3] not in (1, 3):
            raise UserError(f"data.keys.{key}: got {column.shape[3]} channels in {title}, must be 1 or 3")
    return column


def _decode(blobs: Blobs, row: int, size: int | None) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(blobs.get(row))) as file:
            image = file.convert(blobs.mode)
    except UnidentifiedImageError as error:  # its own text names a buffer in memory
        raise UserError(f"data.source: corrupt image {blobs.name(row)} (cannot identify image file)") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"data.source: corrupt image {blobs.name(row)} ({error})") from error
    array = np.asarray(_resized(image, size))
    return array[..., None] if array.ndim == 2 else array


def _fitted(array: np.ndarray, size: int | None) -> np.ndarray:
    """One [H, W, C] picture of an array, resized."""
    from PIL import Image

    grey = array.shape[2] == 1
    out = np.asarray(_resized(Image.fromarray(array[..., 0] if grey else array), size))
    return out[..., None] if grey else out


def _resized(image: "Image", size: int | None) -> "Image":
    """The central square, its side scaled to `size` pixels (bicubic, with an anti-aliasing filter)."""
    from PIL import Image

    if size is None or image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BICUBIC)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
