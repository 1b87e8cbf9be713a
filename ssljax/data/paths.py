"""Patterns of paths with `{split}`, and the files below a folder: links are followed, hidden files are left out."""

import fnmatch
import os
import pathlib
import re
from collections.abc import Iterator

from ssljax.base.errors import UserError
from ssljax.data.storage import Entry, entries, exists, is_remote, real, root_and_parts

_SPLIT = "{split}"
_MAGIC = re.compile(r"[*?\[]")
# Folders and files that operating systems and storage servers add to folders of data.
_SYSTEM = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"}


def is_pattern(path: str) -> bool:
    """Returns True if a path has wildcards or `{split}`."""
    return _SPLIT in path or _MAGIC.search(path) is not None


def matches(pattern: str) -> list[tuple[pathlib.Path, str | None]]:
    """Returns the paths that match a pattern, sorted, each with the text that `{split}` stands for (None without it).

    `*`, `?` and `[...]` match within one folder, `**` any number of folders; none matches a hidden name unless the
    pattern begins with a dot there. A name that exists as it is written, brackets included, stands for itself.

    Raises:
        UserError: a folder cannot be read, or a path is a link to nothing.
    """
    start, parts = root_and_parts(pattern)
    found = dict.fromkeys(_walk(start, parts, None))
    for path, _ in found:
        refuse_broken_link(path)
    return sorted(found, key=lambda match: str(match[0]))


def refuse_broken_link(path: pathlib.Path) -> None:
    """Raises UserError if a path is a link to nothing, or to itself."""
    if not is_remote(path) and path.is_symlink() and not os.path.exists(path):
        raise UserError(f"data.source: {path} is a broken link (to {os.readlink(path)})")


def files_below(folder: pathlib.Path, above: tuple[str, ...] = ()) -> Iterator[pathlib.Path]:
    """Yields the files in a folder and its sub-folders, without hidden files and those of operating systems.

    Links are followed. A link to a folder that contains it is left out, since it leads to no further file.

    Args:
        folder: the folder.
        above: real paths of the folders that were entered before.

    Raises:
        UserError: a folder cannot be read, or a link leads nowhere.
    """
    place = real(folder)
    if place in above:
        return
    for entry in _entries(folder):
        path = folder / entry.name
        if entry.is_folder:
            yield from files_below(path, (*above, place))
        else:
            if entry.is_link:
                refuse_broken_link(path)
            yield path


def folders_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders directly in a folder, sorted, as `files_below` enters them."""
    above = real(folder)
    return [folder / e.name for e in _entries(folder) if e.is_folder and real(folder / e.name) != above]


def _walk(base: pathlib.Path, parts: list[str], split: str | None) -> Iterator[tuple[pathlib.Path, str | None]]:
    """Yields the paths below `base` that match the parts of a pattern, and the split."""
    if not parts:
        yield base, split
        return
    part, rest = parts[0], parts[1:]
    if split is not None:
        part = part.replace(_SPLIT, split)
    if part == "**" and not rest:
        yield from ((path, split) for path in files_below(base))
    elif part == "**":
        yield from _walk(base, rest, split)
        for folder in _folders_below(base):
            yield from _walk(folder, rest, split)
    elif (there := exists(base / part)) or not is_pattern(part):
        if there:
            yield from _walk(base / part, rest, split)
    elif base.is_dir():
        names = [entry.name for entry in _entries(base, hidden=part.startswith("."))]
        # Brackets stand for themselves if such a name exists, as in `[2024] {split}`.
        for expression in (_expression(part, brackets=False), _expression(part, brackets=True)):
            found = [match for name in names if (match := expression.fullmatch(name))]
            if found:
                break
        for match in found:
            yield from _walk(base / match.string, rest, match.groupdict().get("split", split))


def _expression(part: str, brackets: bool) -> re.Pattern:
    """Returns the regular expression of one part of a pattern; without `brackets`, [ and ] stand for themselves."""
    tokens = re.split(r"(\{split\}|\*|\?|\[!?[^\]]+\])" if brackets else r"(\{split\}|\*|\?)", part)
    seen, out = False, []
    for token in tokens:
        if token == _SPLIT:
            out.append("(?P=split)" if seen else "(?P<split>.+)")
            seen = True
        elif token in ("*", "?") or (brackets and re.fullmatch(r"\[!?[^\]]+\]", token)):
            out.append(fnmatch.translate(token).removeprefix("(?s:").rpartition(")")[0])
        else:
            out.append(re.escape(token))
    return re.compile("".join(out), re.DOTALL)


def _folders_below(folder: pathlib.Path, above: tuple[str, ...] = ()) -> Iterator[pathlib.Path]:
    """Yields the folders below a folder, as `files_below` enters them."""
    place = real(folder)
    for path in folders_in(folder) if folder.is_dir() else ():
        if real(path) not in above:
            yield path
            yield from _folders_below(path, (*above, place))


def _entries(folder: pathlib.Path, hidden: bool = False) -> list[Entry]:
    """Returns the entries of a folder, sorted by name; without hidden ones and those of operating systems by default.

    Raises:
        UserError: the folder cannot be read.
    """
    return [e for e in entries(folder) if hidden or not (e.name.startswith(".") or e.name in _SYSTEM)]
