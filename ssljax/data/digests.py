"""Digests of the files of texts. Caches of tokens are named after the content of the files, not after their times."""

import contextlib
import hashlib
import pathlib
from typing import Any

from ssljax.base.files import write_whole
from ssljax.base.hashing import digest
from ssljax.data.config import SourceConfig
from ssljax.data.file_source import FileSource, reading
from ssljax.data.files import ImageFolder
from ssljax.data.selection import fingerprint
from ssljax.data.sources import Join, open_source
from ssljax.data.splits import Split, parse_split
from ssljax.data.storage import is_remote, state_of


def content_key(config: SourceConfig, root: pathlib.Path) -> Any:
    """Returns a JSON value that changes with the content of the selected rows.

    Every byte of a file counts. A file is read once: its digest is kept under its path, size, and times of the last
    change of content and of status, of which the last cannot be set back.

    Args:
        config: the source.
        root: folder of the caches.

    Raises:
        UserError: a file cannot be read.
    """
    _, *selection = fingerprint(config)
    return [_digests(open_source(config.source), parse_split(config.split), root), *selection]


def _digests(source: Any, split: Split, root: pathlib.Path) -> Any:
    if isinstance(source, Join):
        return [_digests(part, split, root) for part in source.sources]
    if isinstance(source, FileSource) and not isinstance(source, ImageFolder):  # texts are not in image files
        return [source.form, *(_digest(path, root) for path in source.files(split))]
    return source.fingerprint(split)


def rows_state(config: SourceConfig) -> Any:
    """Returns a JSON value that changes when the rows of a split do, sliced or not, without reading its files."""
    split = parse_split(config.split)
    return [config.source, split.name, _states(open_source(config.source), split)]


def _states(source: Any, split: Split) -> Any:
    if isinstance(source, Join):
        return [_states(part, split) for part in source.sources]
    if isinstance(source, FileSource):
        return [source.form, *(_stamp(path) for path in source.files(split))]
    return source.fingerprint(split)


def _digest(path: pathlib.Path, root: pathlib.Path) -> str:
    with reading(path, "a file"):
        stamp = _stamp(path)
        kept = root / f"digest-{digest(stamp)}"
        if kept.is_file() and (content := kept.read_text()):
            return content
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
        changed = _stamp(path) != stamp
    if not changed:
        with contextlib.suppress(OSError):  # a folder that cannot be written is refused where the cache is built
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, content)
    return content


def _stamp(path: pathlib.Path) -> list[Any]:
    """Returns the state of a file; of a local one with what a user cannot set back."""
    status = [] if is_remote(path) else [path.stat().st_ctime_ns, path.stat().st_ino]
    return [*state_of(path), *status]
