"""Data of every installation: the digits of scikit-learn, text and code of the Python library, synthetic data."""

import functools
import hashlib
import inspect
import pathlib
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.data import synthetic
from ssljax.data.sources import Column, Table, unknown_split
from ssljax.data.splits import Split

_VERSION = 2  # part of the name of caches; raise it if a change of this file changes rows


class Builtin:
    """`builtin:digits`, `builtin:python-docs`, `builtin:python-code`, and synthetic data (`ssljax.data.synthetic`).

    digits: 1,797 grey images [8, 8, 1] of handwritten digits (Alpaydin and Kaynak, 1998), values 0..16 scaled to
    0..255; 1,437 train and 360 test in a fixed random order.
    python-docs: help topics and docstrings of the standard library of the running CPython, in English.
    python-code: source files of this library. Both have train, valid (about 10% of the documents) and test (10%).
    addition: a million texts such as "347+085=2340", the digits of the sum from the units on.
    modular-addition: 9,409 pairs of numbers below 97, one character each, and their sums modulo 97 as labels.
    markov: texts of 16 letters whose entropy is known (`ssljax.data.synthetic`), 20M letters in train.
    """

    def __init__(self, name: str):
        if name not in _TABLES:
            raise UserError(
                f"data.source: unknown builtin:{name}{nearest(name, _TABLES)} (allowed: {', '.join(_TABLES)})"
            )
        self.name = name

    def fingerprint(self, split: Split) -> Any:
        return ["builtin", self.name, _VERSION, platform.python_version()]

    def content(self, split: Split) -> Any:
        """Returns the version of the rows; that of Python counts for its texts only."""
        return [
            "builtin",
            self.name,
            _VERSION,
            *([platform.python_version()] if self.name.startswith("python") else []),
        ]

    def table(self, split: Split) -> Table:
        return _TABLES[self.name](split)


def _digits(split: Split) -> Table:
    from sklearn.datasets import load_digits

    if split.name not in ("train", "test", "all"):
        raise unknown_split(split.name, ("train", "test", "all"), "builtin:digits")
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.RandomState(0).permutation(len(images))  # NumPy guarantees its stream, so the split is fixed
    rows = {"train": order[:-360], "test": order[-360:], "all": order}[split.name]
    columns = {"image": images[rows], "label": digits.target[rows].astype(np.int32)}
    first = len(images) - 360 if split.name == "test" else 0
    return Table(
        tuple(columns),
        columns.__getitem__,
        ("train", "test", "all"),
        tuple(str(c) for c in range(10)),
        numbers=lambda: np.arange(first, first + len(rows)),
    )


def _texts(documents: Callable[[], dict[str, str]], split: Split, title: str) -> Table:
    """Texts of a split. The split of a document depends on its name only, in every version of Python."""
    others = {0: "test", 1: "valid"}
    if split.name not in ("train", "valid", "test", "all"):
        raise unknown_split(split.name, ("train", "valid", "test", "all"), title)

    def chosen(name: str) -> bool:
        return split.name in ("all", others.get(hashlib.sha256(name.encode()).digest()[0] % 10, "train"))

    def get(_: str) -> Column:
        return [text for name, text in sorted(documents().items()) if chosen(name)]

    def numbers() -> np.ndarray:
        return np.flatnonzero([chosen(name) for name in sorted(documents())])

    return Table(("text",), get, ("train", "valid", "test", "all"), numbers=numbers)


def _library_files() -> Iterator[tuple[str, str]]:
    """Yields name and text of each source file of the standard library, without tests and tables."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if skipped.isdisjoint(name.parts) and not name.name.startswith("_sysconfigdata"):
            try:
                yield name.as_posix(), path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue


@functools.cache
def _code() -> dict[str, str]:
    return {name: text for name, text in _library_files() if text.strip()}


# A text in triple quotes at the start of a file, or of a block after a colon. Parsing would take ten times as long.
_DOCSTRING = re.compile(r'(?:\A(?:#[^\n]*\n|\s)*|:[ \t]*\n\s*)[rR]?"""(.*?)"""', re.DOTALL)


@functools.cache
def _docs() -> dict[str, str]:
    from pydoc_data.topics import topics

    documents = {f"topics/{name}": text for name, text in topics.items()}
    for name, code in _library_files():
        documents[name] = "\n\n".join(inspect.cleandoc(text) for text in _DOCSTRING.findall(code))
    # Help topics repeat paragraphs of other topics. Repetitions are removed, so that no test paragraph is trained on.
    paragraphs_so_far: set[str] = set()
    unique = {}
    for name, text in sorted(documents.items()):
        paragraphs = [p for p in text.split("\n\n") if p.strip() and (len(p) < 60 or p not in paragraphs_so_far)]
        paragraphs_so_far.update(paragraphs)
        if paragraphs:
            unique[name] = "\n\n".join(paragraphs) + "\n"
    return unique


_TABLES = {
    "addition": synthetic.addition,
    "digits": _digits,
    "markov": synthetic.markov,
    "modular-addition": synthetic.modular_addition,
    "python-code": lambda split: _texts(_code, split, "builtin:python-code"),
    "python-docs": lambda split: _texts(_docs, split, "builtin:python-docs"),
}
