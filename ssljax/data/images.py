"""Columns of images as uint8 arrays [N, H, W, C]: decoded once into a file of the cache, or at each use by threads."""

import concurrent.futures
import functools
import io
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.files import reserve
from ssljax.base.hashing import digest
from ssljax.base.retries import retried
from ssljax.data.cache import build_once
from ssljax.data.config import DataConfig
from ssljax.data.notes import inform_once
from ssljax.data.pixels import UndefinedRangeError, to_pixels
from ssljax.data.selection import Rows
from ssljax.data.sources import Blobs, Column

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

_LARGEST = 4 << 30  # bytes of decoded images that `auto` keeps on disk
_VERSION = 5  # part of the name of caches; raise it if a change of the decoding changes pixels
_CHECKED_ROWS = 4096  # images that are checked at a time
_MODES = {1: "L", 3: "RGB"}  # channels -> mode of Pillow
_FIRST_FRAMES = "first_frames.txt"  # in a cache: names of the animations of which the first frame was taken
_DAMAGED = "damaged.json"  # in a cache: [[number of a row, what is wrong with its image], ...]


class DamagedImageError(UserError):
    """A file that cannot be read or decoded as an image."""


class Picture(NamedTuple):
    """A decoded image."""

    pixels: np.ndarray  # uint8 [H, W, C]
    aspect: float  # width / height before it was resized
    animated: bool  # its file has further frames


class Images:
    """The images of the selected rows of a column.

    Args:
        rows: the selected rows.
        key: name of the column in the batch.
        fingerprint: fingerprint of the source of the rows; names the cache of decoded images.
        config: the keys `image_size`, `image_fit` and `images` of `data`.
        root: folder of caches.
        like: shape [H, W, C] of the images of a run: these images get the same number of channels, and the same size if
            it is square; None: they keep theirs, unless the config has a size.

    Attributes:
        elements: keys of the batch: the images, and their aspect if they are squeezed.

    Raises:
        UserError: the column does not contain images.
    """

    def __init__(
        self,
        rows: Rows,
        key: str,
        fingerprint: Any,
        config: DataConfig,
        root: pathlib.Path,
        like: Sequence[int] | None = None,
    ):
        self.rows, self.key, self.config, self.root = rows, key, config, root
        self.column = _checked(rows.columns[key], key, rows.title)
        self.fingerprint = fingerprint
        self._damaged: dict[int, str] = {}  # number among the selected rows -> what is wrong
        self._squeezed = config.image_fit == "squeeze"
        own = self.column.mode if isinstance(self.column, Blobs) else _MODES[self.column.shape[3]]
        self.mode = own if like is None else _MODES[like[2]]
        self.size = (
            like[0] if config.image_size is None and like is not None and like[0] == like[1] else config.image_size
        )

    @functools.cached_property
    def elements(self) -> dict[str, dict[str, Any]]:
        elements: dict[str, dict[str, Any]] = {self.key: {"shape": list(self.shape), "dtype": "uint8"}}
        return elements | ({"aspect": {"shape": [], "dtype": "float32"}} if self._squeezed else {})

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape [H, W, C] of the images: that of the first that can be decoded."""
        return self._first[1]

    @functools.cached_property
    def _first(self) -> tuple[int, tuple[int, ...]]:
        """The number of the first image that can be decoded, and its shape. Damaged ones before it are counted."""
        for i in range(len(self.rows.index)):
            try:
                return i, self._one(i).pixels.shape
            except DamagedImageError as error:
                self._count({i: error})
        raise UserError(f"data.source: no image of {self.rows.title} can be decoded")

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of `elements` of rows that were not damaged before.

        Raises:
            UserError: one is damaged now.
        """
        taken, arrays = self.take(rows)
        if not np.array_equal(taken, rows):
            raise UserError(f"data.source: an image of {self.rows.title} was damaged since the run began")
        return arrays

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns rows and the arrays of `elements` of their images: pixels uint8 [B, H, W, C], aspects float32 [B].

        Args:
            rows: int64 [B], numbers among the selected rows. A row with a damaged image is replaced by the next one.

        Raises:
            UserError: more images are damaged than the config allows, or one has another shape than the first.
        """
        if self._decoded:  # not in threads: NumPy's indexing copies 32 x 32 images at memory speed
            arrays = self._arrays
            rows = self._intact(rows)
            pixels, aspects = (array[rows] for array in arrays)
        else:
            rows, pixels, aspects = self._decode_rows(self._intact(rows))
        return rows, {self.key: pixels} | ({"aspect": aspects} if self._squeezed else {})

    def intact(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows of `rows` whose images are not damaged.

        Images that are decoded at each use are decoded once here, if the config allows damaged ones.

        Raises:
            UserError: more images are damaged than the config allows.
        """
        if self._decoded:
            _ = self._arrays  # counts the damaged ones
        elif self.config.damaged_images:
            for block in np.array_split(rows, max(1, -(-len(rows) // _CHECKED_ROWS))):
                self._check(block)
        return rows[~np.isin(rows, list(self._damaged))]

    def _check(self, rows: np.ndarray) -> None:
        """Decodes the images of rows and counts the damaged ones."""

        def decode(i: int) -> None:
            self._of_shape(int(rows[i]))

        self._run(decode, rows, 4 * _cores())

    def _decode_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns rows with their pixels and aspects, in which further damaged images are replaced."""
        pixels, aspects = np.empty((len(rows), *self.shape), np.uint8), np.empty(len(rows), np.float32)
        read = self.column.read if isinstance(self.column, Blobs) else None
        contents = None if read is None else retried(read)(self.rows.index[rows].tolist())

        def put(i: int) -> None:
            content = None if contents is None else contents[i]
            pixels[i], aspects[i], _ = self._of_shape(int(rows[i]), content)

        if not self._run(put, rows, 4 * _cores()):
            return rows, pixels, aspects
        return self._decode_rows(self._intact(rows))

    def _run(self, put: Callable[[int], None], rows: np.ndarray, chunks: int) -> dict[int, DamagedImageError]:
        """Calls `put(i)` for row i of `rows` in threads, and counts damaged images.

        Returns:
            number among the selected rows -> what is wrong with its image.
        """
        failed: dict[int, DamagedImageError] = {}

        def fill(chunk: np.ndarray) -> None:
            for i in chunk:
                if len(failed) > self.config.damaged_images:  # the count below stops the run
                    return
                try:
                    put(int(i))
                except DamagedImageError as error:
                    failed[int(rows[i])] = error

        _run_all(_threads(), fill, np.array_split(np.arange(len(rows)), min(len(rows), chunks)))
        self._count(failed)
        return failed

    def _intact(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows in which each row with a damaged image is replaced by the next row with an intact one."""
        if not self._damaged:
            return rows
        rows, damaged = rows.copy(), np.array(list(self._damaged))
        while (wrong := np.isin(rows, damaged)).any():
            rows[wrong] = (rows[wrong] + 1) % len(self.rows.index)
        return rows

    def _count(self, errors: Mapping[int, Any]) -> None:
        """Counts damaged images: number among the selected rows -> what is wrong with it."""
        for i, error in sorted(errors.items()):
            if i in self._damaged:
                continue
            self._damaged[i] = str(error)
            limit = self.config.damaged_images
            if len(self._damaged) > limit:
                many = f" ({limit + 1} images are damaged, and data.damaged_images allows {limit})"
                raise DamagedImageError(f"{error}{many if limit else ''}")
            if len(self._damaged) == len(self.rows.index):
                raise UserError(f"data.source: no image of {self.rows.title} can be decoded")
            log.warning("%s: left out (%d of at most %d damaged images)", error, len(self._damaged), limit)

    @functools.cached_property
    def _decoded(self) -> bool:
        """True if the images are decoded once. The log says so, with their size."""
        if isinstance(self.column, np.ndarray):
            return True
        count, kept = len(self.rows.index), self.config.images
        size = count * math.prod(self.shape)
        decoded = kept == "decoded" or (kept == "auto" and size <= _LARGEST)
        where = "once, into a file in the folder of caches" if decoded else "at each use"
        mega = f"{size / 1e6:,.0f} MB of pixels"
        inform_once(f"images of {self.rows.title}: {count:,} of {_text(self.shape)}, {mega}, decoded {where}")
        return decoded

    @functools.cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All images, uint8 [N, H, W, C], and their aspects, float32 [N]."""
        size, mode = self.size, self.mode
        own = self.column.shape if isinstance(self.column, np.ndarray) else None
        if own is not None and _MODES[own[3]] == mode and (size is None or own[1:3] == (size, size)):
            assert isinstance(self.column, np.ndarray)
            whole = len(self.rows.index) == len(self.column)
            array = self.column if whole else self.column[self.rows.index]
            return array, np.full(len(array), array.shape[2] / array.shape[1], np.float32)
        key = digest(["images", _VERSION, self.fingerprint, self.key, size, mode, self.config.image_fit])
        folder = build_once(self.root / f"images-{key}", self._build)
        animations = (folder / _FIRST_FRAMES).read_text(errors="surrogateescape").splitlines()
        if animations:
            log.warning(
                "data.source: the first frame is used of %d images with several (%s, ...)",
                len(animations),
                animations[0],
            )
        self._count(dict(json.loads((folder / _DAMAGED).read_text())))
        return np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "aspects.npy")

    def _one(self, i: int, content: bytes | None = None) -> Picture:
        """Returns image i of the selected rows, resized; `content`: the bytes of its file, if they are known."""
        row, form = int(self.rows.index[i]), (self.mode, self.size, self._squeezed)
        if isinstance(self.column, np.ndarray):
            return _converted(self.column[row], *form)
        return _decode(self.column, row, content, *form)

    def _of_shape(self, i: int, content: bytes | None = None) -> Picture:
        """Returns `_one` of an image. Raises UserError if its shape is not that of the first."""
        picture = self._one(i, content)
        if picture.pixels.shape != self.shape:
            pair = (self._first, (i, picture.pixels.shape))
            both = " and ".join(f"{self._name(j)} is {_text(shape)}" for j, shape in pair)
            raise UserError(f"data.source: images of mixed shapes: {both}; set data.image_size to resize them")
        return picture

    def _build(self, folder: pathlib.Path) -> None:
        """Writes all images into a file of the cache."""
        count, path = len(self.rows.index), folder / "images.npy"
        out = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *self.shape))
        reserve(path)
        aspects, animated = np.empty(count, np.float32), np.zeros(count, bool)

        def put(i: int) -> None:
            out[i], aspects[i], animated[i] = self._of_shape(i)

        # Pillow releases the interpreter lock while it decodes, so threads suffice.
        failed = self._run(put, np.arange(count), max(1, count // 64))
        out.flush()
        (folder / _DAMAGED).write_text(json.dumps([[i, str(error)] for i, error in sorted(failed.items())]))
        np.save(folder / "aspects.npy", aspects)
        names = [" ".join(self._name(int(i)).splitlines()) for i in np.flatnonzero(animated)]
        (folder / _FIRST_FRAMES).write_text("".join(f"{name}\n" for name in names), errors="surrogateescape")

    def _name(self, i: int) -> str:
        row = int(self.rows.index[i])
        return self.column.name(row) if isinstance(self.column, Blobs) else f"row {row} of {self.rows.title}"


def open_picture(rows: Rows, row: int, channels: int) -> "Image":
    """Returns the picture of a row of the table, at its own size, with 1 or 3 channels (mode L or RGB).

    Raises:
        UserError: the column `image` has no images, or the picture is damaged.
    """
    from PIL import Image

    column, mode = _checked(rows.columns["image"], "image", rows.title), _MODES[channels]
    if isinstance(column, np.ndarray):
        pixels = _converted(column[row], mode, None, False).pixels
    else:
        pixels = _decode(column, row, None, mode, None, False).pixels
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    """The threads that decode images: one for each core."""
    return concurrent.futures.ThreadPoolExecutor(_cores(), "images")


def in_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Returns `work` of each item, in order, computed by the threads that decode images."""
    return list(_threads().map(work, items))


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


def _decode(blobs: Blobs, row: int, content: bytes | None, mode: str, size: int | None, squeezed: bool) -> Picture:
    """Returns an encoded image in a mode, resized.

    Raises:
        UserError: the image cannot be read, is damaged, or has no defined range of values; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    name = blobs.name(row)
    try:
        content = retried(blobs.get)(row) if content is None else content
    except OSError as error:
        raise DamagedImageError(f"data.source: cannot read image {name} ({error.strerror})") from error
    try:
        with Image.open(io.BytesIO(content)) as file:
            if size is not None:  # a JPEG is decoded at a half, a quarter or an eighth of its size, if that suffices
                file.draft(None, (size, size))
            # Counted before the pixels are read, since Pillow moves from frame to frame. A camera's MPO file holds
            # further views of one picture.
            animated = file.format != "MPO" and getattr(file, "n_frames", 1) > 1
            image = to_pixels(file, mode)
    except UndefinedRangeError as error:
        raise UserError(f"data.source: cannot use image {name} ({error})") from error
    except UnidentifiedImageError as error:  # its message names a buffer in memory
        raise DamagedImageError(f"data.source: corrupt image {name} (cannot identify image file)") from error
    except Exception as error:  # Pillow raises many types for damaged files
        raise DamagedImageError(f"data.source: corrupt image {name} ({' '.join(str(error).split())})") from error
    return _resized(image, size, squeezed)._replace(animated=animated)


def _converted(array: np.ndarray, mode: str, size: int | None, squeezed: bool) -> Picture:
    """Returns an image [H, W, C] in a mode, resized."""
    from PIL import Image

    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    return _resized(image.convert(mode), size, squeezed)


def _resized(image: "Image", size: int | None, squeezed: bool) -> Picture:
    """Returns an image, resized to `size` pixels a side with antialiasing; None: unchanged.

    The central square is resized by bicubic interpolation. A whole picture is squeezed by linear interpolation, which
    takes half the time: views resample it once more.
    """
    from PIL import Image

    aspect = image.width / image.height
    if size is not None and image.size != (size, size):
        if not squeezed:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.BILINEAR if squeezed else Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return Picture(pixels[..., None] if pixels.ndim == 2 else pixels, aspect, False)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
