"""Columns of images as uint8 arrays [N, H, W, C]: decoded once into a file of the cache, or at each use by threads."""

import concurrent.futures
import functools
import io
import logging
import math
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.data.cache import build_once
from ssljax.data.pixels import UndefinedRangeError, to_pixels
from ssljax.data.selection import Rows
from ssljax.data.sources import Blobs, Column

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

_LARGEST = 4 << 30  # bytes of decoded images that `auto` keeps on disk
_VERSION = 3  # part of the name of caches; raise it if a change of the decoding changes pixels
_FIRST_FRAMES = "first_frames.txt"  # in a cache: names of the animations of which the first frame was taken


class Images:
    """The images of the selected rows of a column.

    Args:
        rows: the selected rows.
        key: name of the column in the batch.
        fingerprint: fingerprint of the source of the rows; names the cache of decoded images.
        size: side in pixels of the resized images; None = no resizing.
        kept: form in which encoded images are kept: "decoded", "encoded" or "auto", as in `data.images`.
        root: folder of caches.

    Raises:
        UserError: the column does not contain images.
    """

    def __init__(self, rows: Rows, key: str, fingerprint: Any, size: int | None, kept: str, root: pathlib.Path):
        self.rows, self.key, self.size, self.kept, self.root = rows, key, size, kept, root
        self.column = _checked(rows.columns[key], key, rows.title)
        self.fingerprint = fingerprint
        self._array: np.ndarray | None = None

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape [H, W, C] of one image. Decodes one image at most."""
        return self._one(0)[0].shape

    @functools.cached_property
    def decoded(self) -> bool:
        """True if the images are decoded once. The log says so, with their size."""
        if isinstance(self.column, np.ndarray):
            return True
        count, size = len(self.rows.index), len(self.rows.index) * math.prod(self.shape)
        decoded = self.kept == "decoded" or (self.kept == "auto" and size <= _LARGEST)
        log.info(
            "images of %s: %d of %s, decoded %s (%s bytes)",
            self.rows.title,
            count,
            _text(self.shape),
            "once, into a file in the folder of caches" if decoded else "at each use",
            f"{size:,}",
        )
        return decoded

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns images, uint8 [B, H, W, C].

        Args:
            rows: int64 [B], numbers among the selected rows.

        Raises:
            UserError: an image cannot be decoded, or has another shape than the first.
        """
        if self.decoded:  # not in threads: NumPy's indexing copies 32 x 32 images at memory speed
            return self.array()[rows]
        out = np.empty((len(rows), *self.shape), np.uint8)

        def fill(chunk: np.ndarray) -> None:
            for i in chunk:
                out[i] = self._of_shape(int(rows[i]))[0]

        _run_all(_threads(), fill, np.array_split(np.arange(len(rows)), min(len(rows), 4 * _cores())))
        return out

    def array(self) -> np.ndarray:
        """Returns all images, uint8 [N, H, W, C], decoded once.

        Raises:
            UserError: an image cannot be decoded, or has another shape than the first.
        """
        if self._array is None:
            if isinstance(self.column, np.ndarray) and (
                self.size is None or self.column.shape[1:3] == (self.size,) * 2
            ):
                whole = len(self.rows.index) == len(self.column)
                self._array = self.column if whole else self.column[self.rows.index]
            else:
                key = digest(["images", _VERSION, self.fingerprint, self.key, self.size])
                folder = build_once(self.root / f"images-{key}", self._build)
                animations = (folder / _FIRST_FRAMES).read_text(errors="surrogateescape").splitlines()
                if animations:
                    log.warning(
                        "data.source: the first frame is used of %d images with several (%s, ...)",
                        len(animations),
                        animations[0],
                    )
                self._array = np.load(folder / "images.npy", mmap_mode="r")
        return self._array

    def _one(self, i: int) -> tuple[np.ndarray, bool]:
        """Returns image i of the selected rows, resized, and True if its file has further frames."""
        row = int(self.rows.index[i])
        if isinstance(self.column, np.ndarray):
            return _resize_array(self.column[row], self.size), False
        return _decode(self.column, row, self.size)

    def _of_shape(self, i: int) -> tuple[np.ndarray, bool]:
        """Returns `_one` of an image. Raises UserError if its shape is not that of the first."""
        image, animated = self._one(i)
        if image.shape != self.shape:
            both = " and ".join(f"{self._name(j)} is {_text(s)}" for j, s in ((0, self.shape), (i, image.shape)))
            raise UserError(f"data.source: images of mixed shapes: {both}; set data.image_size to resize them")
        return image, animated

    def _build(self, folder: pathlib.Path) -> None:
        """Writes all images into a file of the cache."""
        count, shape, path = len(self.rows.index), self.shape, folder / "images.npy"
        out = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *shape))
        with path.open("r+b") as file:  # reserves the space: a disk that fills up under a mapped file kills the process
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        animated = np.zeros(count, bool)

        def fill(numbers: np.ndarray) -> None:
            for i in numbers:
                out[i], animated[i] = self._of_shape(i)

        # Pillow releases the interpreter lock while it decodes, so threads suffice.
        _run_all(_threads(), fill, np.array_split(np.arange(count), max(1, count // 64)))
        out.flush()
        names = [" ".join(self._name(int(i)).splitlines()) for i in np.flatnonzero(animated)]
        (folder / _FIRST_FRAMES).write_text("".join(f"{name}\n" for name in names), errors="surrogateescape")

    def _name(self, i: int) -> str:
        row = int(self.rows.index[i])
        return self.column.name(row) if isinstance(self.column, Blobs) else f"row {row} of {self.rows.title}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    """The threads that decode images: one for each core."""
    return concurrent.futures.ThreadPoolExecutor(_cores(), "images")


def _run_all(pool: concurrent.futures.ThreadPoolExecutor, work: Callable, items: list) -> None:
    """Runs `work` on all items. Raises the error of the first item that failed, independent of timing."""
    futures = [pool.submit(work, item) for item in items]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()


def _checked(column: Column, key: str, title: str) -> np.ndarray | Blobs:
    """Returns an image column; arrays get a channel axis. Raises UserError for any other column."""
    if not isinstance(column, np.ndarray | Blobs):
        raise UserError(
            f"data.keys.{key}: got a column of {type(column[0]).__name__} values of {title}, must be images"
        )
    if isinstance(column, np.ndarray):
        if column.dtype != np.uint8 or column.ndim not in (3, 4):
            raise UserError(
                f"data.keys.{key}: got {column.dtype} {_text(column.shape)} in {title}, must be uint8 images "
                f"(0 to 255) of shape [N, H, W] or [N, H, W, C]"
            )
        column = column[..., None] if column.ndim == 3 else column
        if column.shape[3] not in (1, 3):
            raise UserError(f"data.keys.{key}: got {column.shape[3]} channels in {title}, must be 1 or 3")
        if 0 in column.shape[1:]:
            raise UserError(f"data.keys.{key}: got images of {_text(column.shape[1:])} in {title}, without pixels")
    return column


def _decode(blobs: Blobs, row: int, size: int | None) -> tuple[np.ndarray, bool]:
    """Returns an encoded image as an array [H, W, C], resized, and True if its file has further frames.

    Raises:
        UserError: the image cannot be read, is damaged, or has no defined range of values; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    name = blobs.name(row)
    try:
        content = blobs.get(row)
    except OSError as error:
        raise UserError(f"data.source: cannot read image {name} ({error.strerror})") from error
    try:
        with Image.open(io.BytesIO(content)) as file:
            if size is not None:  # a JPEG is decoded at a half, a quarter or an eighth of its size, if that suffices
                file.draft(None, (size, size))
            image = to_pixels(file, blobs.mode)
            # A camera's MPO file holds further views of one picture.
            animated = file.format != "MPO" and getattr(file, "n_frames", 1) > 1
    except UndefinedRangeError as error:
        raise UserError(f"data.source: cannot use image {name} ({error})") from error
    except UnidentifiedImageError as error:  # its message names a buffer in memory
        raise UserError(f"data.source: corrupt image {name} (cannot identify image file)") from error
    except Exception as error:  # Pillow raises many types for damaged files
        raise UserError(f"data.source: corrupt image {name} ({' '.join(str(error).split())})") from error
    array = np.asarray(_resized(image, size))
    return array[..., None] if array.ndim == 2 else array, animated


def _resize_array(array: np.ndarray, size: int | None) -> np.ndarray:
    """Resizes an image [H, W, C]."""
    from PIL import Image

    grey = array.shape[2] == 1
    out = np.asarray(_resized(Image.fromarray(array[..., 0] if grey else array), size))
    return out[..., None] if grey else out


def _resized(image: "Image", size: int | None) -> "Image":
    """Returns the central square, resized to `size` pixels a side (bicubic, antialiased); None = unchanged."""
    from PIL import Image

    if size is None or image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BICUBIC)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
