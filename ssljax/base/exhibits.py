"""Pictures and texts of a run as values, which objectives and evaluations make and `ssljax.report` draws."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Tile(NamedTuple):
    """An image of a grid.

    Attributes:
        image: float [h, w, C] in [0, 1].
        text: lines below the image.
        right: True or False: a green or an orange frame; None: no frame.
    """

    image: np.ndarray
    text: str = ""
    right: bool | None = None


class Grid(NamedTuple):
    """Images in rows.

    Attributes:
        heading, caption: title, and an explanation for readers.
        rows: the tiles; all are drawn at one height.
        columns: titles of the columns; (): none.
    """

    heading: str
    caption: str
    rows: Sequence[Sequence[Tile]]
    columns: Sequence[str] = ()


class Matrix(NamedTuple):
    """Counts [C, C] of (true class, predicted class), with the names of the classes."""

    heading: str
    caption: str
    counts: np.ndarray
    names: Sequence[str]


class Texts(NamedTuple):
    """Texts of examples, each a sequence of (label, text), such as ("prompt", "Once upon")."""

    heading: str
    caption: str
    examples: Sequence[Sequence[tuple[str, str]]]


Exhibit = Grid | Matrix | Texts
