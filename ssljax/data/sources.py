"""Sources of rows: URIs, and tables of columns.

A source is a class with `__init__(self, location)`, `fingerprint(split)` (a JSON value that changes when the content
does) and `table(split) -> Table`. A class of the user is named in the URI: `package.module:Class:location`. Sources
that read files share `ssljax.data.file_source.FileSource`.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.base.registry import Registry
from ssljax.data.splits import Split

REGISTRY = Registry(
    "data source",
    {
        "builtin": "ssljax.data.builtin:Builtin",
        "idx": "ssljax.data.arrays:Idx",
        "images": "ssljax.data.files:ImageFolder",
        "jsonl": "ssljax.data.files:JsonLines",
        "npz": "ssljax.data.arrays:Npz",
        "text": "ssljax.data.files:TextFiles",
        "tfds": "ssljax.data.tfds:Tfds",
    },
    has=("fingerprint", "table"),
)


@dataclass(frozen=True)
class Blobs:
    """A column of encoded images.

    Attributes:
        count: number of rows.
        get: row -> bytes of an image file.
        name: row -> name of the image, for messages.
        mode: mode of the decoded image in Pillow: "RGB", or "L" for grey.
    """

    count: int
    get: Callable[[int], bytes]
    name: Callable[[int], str]
    mode: str = "RGB"

    def __len__(self) -> int:
        return self.count


Column = np.ndarray | Blobs | list


@dataclass(frozen=True)
class Table:
    """The columns of one split, read on demand.

    Attributes:
        names: names of the columns.
        get: name -> column.
        splits: names of the splits that the source has; None: the source has one table for all splits.
        classes: names of the classes of the labels.
        sliced: True if the source has already cut the slice of the split.
        location: row -> location of the row, for messages.
    """

    names: tuple[str, ...]
    get: Callable[[str], Column]
    splits: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    sliced: bool = False
    location: Callable[[int], str] = "row {}".format


class Source(Protocol):
    """Rows of one or more splits."""

    def fingerprint(self, split: Split) -> Any:
        """Returns a JSON value that changes when the rows of the split do."""

    def table(self, split: Split) -> Table:
        """Returns the rows of the split. Raises UserError if the split does not exist."""


def expand(text: str, key: str = "data.source") -> str:
    """Replaces the environment variables ($NAME, ${NAME}) in a text.

    Raises:
        UserError: a variable is not set; the message begins with `key`.
    """

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise UserError(f"{key}: environment variable {name} is not set (in {text!r})")
        return os.environ[name]

    return re.sub(r"\$(\w+)|\$\{(\w+)\}", value, text)


def open_source(uri: str) -> Source:
    """Returns the source of a URI.

    Raises:
        UserError: unknown kind of source, or an environment variable that is not set.
    """
    parts = re.split(r"\+(?=[A-Za-z_][\w.]*:)", uri)
    if len(parts) > 1:
        return Join([open_source(part) for part in parts])
    scheme, colon, location = uri.partition(":")
    if not colon:
        raise UserError(f"data.source: got {uri!r}, must be 'kind:location' with a kind of {', '.join(REGISTRY)}")
    if "." in scheme:  # a class of the user
        name, _, location = location.partition(":")
        return REGISTRY.get(f"{scheme}:{name}", "data.source")(expand(location))
    if scheme not in REGISTRY:
        raise UserError(
            f"data.source: unknown kind of source {scheme!r} in {uri!r}{nearest(scheme, REGISTRY)} "
            f"(allowed: {', '.join(REGISTRY)})"
        )
    return REGISTRY.get(scheme, "data.source")(os.path.expanduser(expand(location)))


def unknown_split(name: str, splits: tuple[str, ...], title: str) -> UserError:
    """Returns the error for a split that the source `title` does not have."""
    return UserError(
        f"data.split: unknown split {name!r} of {title}{nearest(name, splits)} (it has: {', '.join(splits)})"
    )


class Join:
    """Several sources side by side: row i of the join is row i of each source."""

    def __init__(self, sources: list[Source]):
        self.sources = sources

    def fingerprint(self, split: Split) -> Any:
        return [source.fingerprint(split) for source in self.sources]

    def table(self, split: Split) -> Table:
        tables = [source.table(Split(split.name)) for source in self.sources]
        owners: dict[str, list[Table]] = {}
        for table in tables:
            for name in table.names:
                owners.setdefault(name, []).append(table)

        def get(name: str) -> Column:
            tables = owners[name.partition("@")[0]]
            if len(tables) > 1:
                raise UserError(f"data.keys: column {name!r} is in more than one of the joined sources")
            return tables[0].get(name)

        splits = [t.splits for t in tables if t.splits is not None]
        classes = [t.classes for t in tables if t.classes is not None]
        return Table(tuple(owners), get, splits[0] if splits else None, classes[0] if classes else None)
