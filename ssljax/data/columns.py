"""Columns of numbers and of names of classes, read once and kept in the folder of caches.

The labels of records, lines of JSON and tar files lie between the images and texts: the first start of a run reads the
files once from end to end, later starts read the labels alone.
"""

import functools
import json
import logging
import pathlib
import time
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.data.cache import build_once
from ssljax.data.sources import Column, OnDemand

log = logging.getLogger(__name__)

_FEW = 50_000  # rows; the columns of smaller tables are read at each start
_LONGEST = 64  # characters of the name of a class
_FORMS = {bool: "b", int: "iu", float: "f"}  # kinds of NumPy's types


def kept(column: Column, key: Any, title: str, root: pathlib.Path) -> Column:
    """Returns a column that is read on demand as an array or list in memory, if it holds numbers or short texts.

    All other columns, and those with values of several kinds, are returned as they are.

    Args:
        column: the column.
        key: a JSON value that changes when the values do.
        title: name of the column and its source, for the log.
        root: folder of the caches.
    """
    if not isinstance(column, OnDemand) or len(column) < _FEW or not _is_small(column[0]):
        return column
    try:
        folder = build_once(root / f"column-{digest([2, key])}", functools.partial(_write, column, title))
    except UserError:  # caches cannot be written
        return column
    if (folder / "texts.json").exists():
        return json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    return np.load(folder / "numbers.npy") if (folder / "numbers.npy").exists() else column


def _is_small(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _LONGEST)


def _write(column: OnDemand, title: str, folder: pathlib.Path) -> None:
    """Writes the values into a folder; nothing if they are of several kinds."""
    log.info("%s: reading %s values, once", title, f"{len(column):,}")
    began, values = time.monotonic(), []
    try:
        for value in column:
            if not _is_small(value):
                return
            values.append(value)
    except UserError:  # perhaps of a row that is not selected
        return
    kinds = set(map(type, values))
    if kinds == {str}:
        (folder / "texts.json").write_text(json.dumps(values), encoding="utf-8")
    # NumPy makes floats of integers without a common form.
    elif len(kinds) == 1 and (array := np.asarray(values)).dtype.kind in _FORMS.get(kinds.pop(), ""):
        np.save(folder / "numbers.npy", array)
    log.info("%s: read in %.0f s", title, time.monotonic() - began)
