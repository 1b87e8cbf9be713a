"""Digests of the content of files, for the identity of the data of a run: cheap for large files."""

import hashlib
import pathlib

from ssljax.base.errors import UserError
from ssljax.data.storage import read_ranges

_WHOLE = 256 << 20  # bytes that are read at most, about; files that are smaller together are read whole
_BLOCK = 64 << 10  # bytes of a sample of a larger file
_FILES = 4096  # files that are opened at most
_AT_ONCE = 512  # blocks that are read together


def digest_files(files: list[tuple[str, pathlib.Path]]) -> str:
    """Returns a digest of files in their order: of their number, names, sizes and content.

    Up to 256 MiB, all bytes count. Of more, blocks of 64 KiB at even distances count, the first and the last bytes of a
    file among them; and of more than 4,096 files, the content of 4,096. (The formats npz, zip and gz end with checksums
    of their content, so that a change of any byte counts.) Paths and times of files do not count, unless as a name.

    Args:
        files: name that counts (such as the class of an image), and path.

    Raises:
        UserError: a file cannot be read.
    """
    out = hashlib.sha256()
    sizes = []
    for name, path in files:
        try:
            sizes.append(path.stat().st_size)
        except OSError as error:
            raise _unreadable(path, error) from error
        out.update(f"{name}\0{sizes[-1]}\n".encode("utf-8", "surrogateescape"))
    step = -(-len(files) // _FILES) or 1
    total = sum(sizes[::step])
    ranges = [
        (path, start, stop)
        for (_, path), size in zip(files[::step], sizes[::step])
        for start, stop in _sampled(size, size if total <= _WHOLE else int(_WHOLE * size / total))
    ]
    for first in range(0, len(ranges), _AT_ONCE):
        group = ranges[first : first + _AT_ONCE]
        try:
            contents = read_ranges(group)
        except OSError as error:
            raise _unreadable(group[0][0], error) from error
        for content in contents:
            out.update(content)
    return out.hexdigest()[:32]


def _sampled(size: int, budget: int) -> list[tuple[int, int]]:
    """Returns ranges of the bytes of a file: all, or blocks at even distances of about `budget` bytes together."""
    if size <= max(budget, 2 * _BLOCK):
        return [(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]
    count = max(2, budget // _BLOCK)
    starts = [(size - _BLOCK) * i // (count - 1) for i in range(count)]
    return [(start, start + _BLOCK) for start in starts]


def _unreadable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"data.source: cannot read {error.filename or path} ({error.strerror or error})")
