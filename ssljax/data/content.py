"""Digests of the content of files, for the identity of the data of a run: cheap for large files."""

import hashlib
import pathlib

from ssljax.base.errors import UserError

_WHOLE = 256 << 20  # bytes that are read at most, about; files that are smaller together are read whole
_BLOCK = 64 << 10  # bytes of a sample of a larger file
_FILES = 4096  # files that are opened at most


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
    for (_, path), size in zip(files[::step], sizes[::step]):
        _add(out, path, size, size if total <= _WHOLE else int(_WHOLE * size / total))
    return out.hexdigest()[:32]


def _add(out: "hashlib._Hash", path: pathlib.Path, size: int, budget: int) -> None:
    """Adds the content of a file to a hash: all of it, or blocks at even distances of about `budget` bytes together."""
    try:
        with path.open("rb") as file:
            if size <= max(budget, 2 * _BLOCK):
                while block := file.read(1 << 20):
                    out.update(block)
                return
            count = max(2, budget // _BLOCK)
            for i in range(count):
                file.seek((size - _BLOCK) * i // (count - 1))
                out.update(file.read(_BLOCK))
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"data.source: cannot read {path} ({error.strerror})")
