"""The examples of one source: selected rows as images, labels, numbers and documents, or text cut without rows."""

import dataclasses
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.audio import Clips
from ssljax.data.columns import kept
from ssljax.data.config import DataConfig, SourceConfig, cache_root
from ssljax.data.digests import rows_state
from ssljax.data.graphs import GraphColumn, PaddedGraphs
from ssljax.data.images import Images
from ssljax.data.lazy_rows import lazy
from ssljax.data.order import RowBlocks
from ssljax.data.selection import Rows, fingerprint, read, selected_keys
from ssljax.data.sources import Blobs, OnDemand
from ssljax.data.text import Documents, Packed, Windows, open_tokens
from ssljax.data.tokenizers import Tokenizer, open_tokenizer


class Examples(Protocol):
    """The examples of one source.

    Attributes:
        size: number of examples.
        elements: key of the batch -> {"shape": shape of one example, "dtype"}.
    """

    size: int
    elements: dict[str, dict[str, Any]]

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Returns the ids, int64 [B], of examples."""

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays [B, ...] of examples, with their ids: those of other rows where an image is damaged."""


@dataclass(frozen=True)
class OpenedSource:
    """A source that is ready to be read.

    Attributes:
        examples: the examples.
        num_classes: number of label values; None without labels.
        classes: names of the classes; None without names.
        texts: the tokens of the examples; None without text.
        blocks: the blocks in which the examples are read; None: examples in any order are read fast.
    """

    examples: Examples
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    texts: Windows | Packed | Documents | None = None
    blocks: RowBlocks | None = None


class RowExamples:
    """Examples that are rows of a table.

    Args:
        rows: the selected rows.
        images: columns of images.
        arrays: other columns, with the selected rows only.
        made: the columns of which several arrays are made: texts, graphs and sounds.
    """

    def __init__(
        self,
        rows: Rows,
        images: dict[str, Images],
        arrays: dict[str, np.ndarray],
        made: Sequence[Documents | PaddedGraphs | Clips] = (),
    ):
        self.rows, self.images, self.arrays, self.made = rows, images, arrays, made
        self.size = len(rows.index)
        self.elements: dict[str, Any] = {}
        for column in images.values():
            self.elements |= column.elements
        self.elements |= {key: {"shape": list(a.shape[1:]), "dtype": a.dtype.name} for key, a in arrays.items()}
        for several in made:
            self.elements |= several.elements

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return self.rows.index[rows]

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        pictures: dict[str, np.ndarray] = {}
        for images in self.images.values():
            rows, pictures = images.take(rows)
        batch = {"id": self.ids(rows)} | {key: array[rows] for key, array in self.arrays.items()} | pictures
        for several in self.made:
            batch |= several.take(rows)
        return batch


def take_intact(examples: Examples, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays [B, ...] of examples with their ids; those with a damaged image are left out."""
    batch = examples.take(rows)
    intact = batch["id"] == examples.ids(rows)
    return batch if intact.all() else {key: array[intact] for key, array in batch.items()}


def intact_arrays(examples: Examples, rows: np.ndarray) -> dict[str, Any]:
    """Returns `take_intact` of many rows; images and sounds are `LazyRows`, which are decoded when they are read."""
    if not isinstance(examples, RowExamples):
        return take_intact(examples, rows)
    for images in examples.images.values():
        rows = images.intact(rows)
    sounds = [several for several in examples.made if isinstance(several, Clips)]
    others = [several for several in examples.made if not isinstance(several, Clips)]
    batch: dict[str, Any] = RowExamples(examples.rows, {}, examples.arrays, others).take(rows)
    for images in examples.images.values():
        batch |= lazy(images.elements, images.read, rows)
    for clips in sounds:
        batch |= lazy(clips.elements, clips.take, rows)
    return batch


def tokenizer_of(sources: tuple[SourceConfig, ...], config: DataConfig) -> Tokenizer | None:
    """Returns the tokenizer of a config; None if no source has text."""
    return open_tokenizer(config) if any("text" in selected_keys(source) for source in sources) else None


def open_examples(
    source: SourceConfig, config: DataConfig, tokenizer: Tokenizer | None, like: Sequence[int] | None = None
) -> OpenedSource:
    """Opens the examples of a source in the form that `config` gives.

    Args:
        source: the source.
        config: the `data` group, for the form: image size, sequence length, mode, number of classes.
        tokenizer: needed for text.
        like: shape [H, W, C] of the images of a run, see `Images`; None: images keep their own.

    Raises:
        UserError: an error in the source or its content, or a setting that does not fit it.
    """
    keys = selected_keys(source)
    if "text" in keys and config.mode != "documents":
        assert tokenizer is not None
        return _open_text(source, keys, config, tokenizer)
    root = cache_root(config)
    rows = _with_small_columns(read(source), source, root)
    images, arrays, num_classes = {}, {}, None
    documents: Documents | None = None
    made: list[Documents | PaddedGraphs | Clips] = []
    for key, column in rows.columns.items():
        if key == "image":
            images[key] = Images(rows, key, fingerprint(source), config, root, like)
        elif key == "label":
            rows = with_class_numbers(rows)
            named = len(rows.classes) if rows.classes else None
            if named and config.num_classes and config.num_classes < named:
                raise UserError(
                    f"data.num_classes: got {config.num_classes}, must be at least the {named} classes of {rows.title}"
                )
            arrays[key] = class_labels(rows, named or config.num_classes)
            num_classes = config.num_classes or named or int(arrays[key].max()) + 1
        elif key == "text":
            assert tokenizer is not None
            documents = Documents(open_tokens(source, tokenizer, root), tokenizer, _seq_len(config))
            made.append(documents)
        elif isinstance(column, GraphColumn):
            made.append(PaddedGraphs(rows, column, config.max_nodes))
        elif key == "audio":
            made.append(Clips(rows, fingerprint(source, ("audio",)), config, root))
        else:
            arrays[key] = _numbers(rows, key)
    examples = RowExamples(rows, images, arrays, made)
    classes = rows.classes if "label" in rows.columns else None
    blocks = rows.blocks.of(rows.index) if rows.blocks is not None and images else None
    return OpenedSource(examples, num_classes, classes, documents, blocks)


_NOT_NUMBERS = ("image", "text", "audio")  # keys of columns that are read on demand


def _with_small_columns(rows: Rows, source: SourceConfig, root: pathlib.Path) -> Rows:
    """Returns rows whose columns of numbers and names of classes are in memory."""
    if not any(isinstance(column, OnDemand) for key, column in rows.columns.items() if key not in _NOT_NUMBERS):
        return rows
    place = rows_state(source)
    columns = {
        key: column
        if key in _NOT_NUMBERS
        else kept(column, [place, len(column), selected_keys(source)[key]], f"{key} of {rows.title}", root)
        for key, column in rows.columns.items()
    }
    return dataclasses.replace(rows, columns=columns)


def renumbered(opened: OpenedSource, classes: tuple[str, ...]) -> OpenedSource:
    """Returns a source whose labels are indices of `classes`, which has all its names of classes."""
    examples = opened.examples
    if opened.classes in (None, classes) or not isinstance(examples, RowExamples):
        return opened
    numbers = np.array([classes.index(name) for name in opened.classes], np.int32)
    arrays = examples.arrays | {"label": numbers[examples.arrays["label"]]}
    examples = RowExamples(examples.rows, examples.images, arrays, examples.made)
    return dataclasses.replace(opened, examples=examples, num_classes=len(classes), classes=classes)


def _open_text(source: SourceConfig, keys: dict[str, str], config: DataConfig, tokenizer: Tokenizer) -> OpenedSource:
    """Opens the text of a source in mode `windows` or `packed`, which have no rows."""
    # A default label is dropped silently. A column that the user named, or an image, is not.
    dropped = [key for key in keys if key != "text" and (source.keys or key in ("image", "audio"))]
    if dropped:
        raise UserError(
            f"data.mode: got {config.mode!r}, which cuts text without regard to rows and would drop "
            f"{', '.join(dropped)}; use 'documents', or name only the text in data.keys"
        )
    cache, title = open_tokens(source, tokenizer, cache_root(config)), f"{source.source} [{source.split}]"
    seq_len = _seq_len(config)
    if config.mode == "windows":
        windows = Windows(cache, seq_len, config.overlap, title)
        return OpenedSource(windows, texts=windows)
    packed = Packed(cache, seq_len, tokenizer.pad, title)
    return OpenedSource(packed, texts=packed)


def _seq_len(config: DataConfig) -> int:
    if config.seq_len is None:
        raise UserError("data.seq_len: missing; text needs a number of tokens (or name data.keys without text)")
    return config.seq_len


def _numbers(rows: Rows, key: str) -> np.ndarray:
    """Returns the selected rows of a column of numbers, [N, ...].

    Raises:
        UserError: a row is not a number or a list of numbers, shapes differ, or a number has no 32-bit form on a
            device.
    """
    column = rows.columns[key]
    if isinstance(column, np.ndarray):
        column = column[rows.index]
    elif not isinstance(column, Blobs):
        chosen = rows.index.tolist()
        column = column.read(chosen) if isinstance(column, OnDemand) else [column[row] for row in chosen]
        for row, value in zip(rows.index, column):
            if not isinstance(value, bool | int | float | list | np.generic):
                raise _not(rows, key, value, int(row), "must be a number")
    try:
        array = np.asarray(column)
    except (ValueError, OverflowError):  # lists of different lengths, or integers among floats that have no float
        array = np.zeros(0, object)
    # NumPy makes floats or objects of integers that have no common 64-bit form.
    if isinstance(column, list) and array.dtype.kind in "Of":
        whole = array.dtype.kind == "O" or all(isinstance(value, int) for value in column)
        for row, value in zip(rows.index, column):
            if whole and isinstance(value, int) and not -(2**31) <= value < 2**32:
                raise _not(rows, key, value, int(row), "must fit 32 bits")
    if array.dtype.kind not in "biuf":
        raise UserError(f"data.keys.{key}: the column of {rows.title} must hold numbers of one shape")
    _check_32_bits(rows, key, array)
    return array


def _check_32_bits(rows: Rows, key: str, array: np.ndarray) -> None:
    """Raises UserError if a number would change on a device, which holds 32-bit integers and floats, or is not finite.

    Floats are rounded to 32 bits, as every parameter is.
    """
    if array.dtype.kind == "f":
        wrong = ~(np.abs(array) <= np.finfo(np.float32).max)
        allowed = "must be finite and fit 32 bits"
    elif array.dtype.kind == "b":
        return
    else:
        limits = np.iinfo(np.uint32 if array.dtype.kind == "u" else np.int32)
        wrong = (array < limits.min) | (array > limits.max)
        allowed = f"must be in [{limits.min}, {limits.max}], since devices hold 32-bit integers"
    if wrong.any():
        i = int(np.argwhere(wrong)[0, 0])
        raise _not(rows, key, array[wrong].flat[0], int(rows.index[i]), allowed)


def _not(rows: Rows, key: str, value: Any, row: int, allowed: str) -> UserError:
    """Returns the error for a value of a row."""
    value = value.item() if isinstance(value, np.generic) else value
    # Python prints no integers of thousands of digits.
    shown = "a huge integer" if isinstance(value, int) and abs(value) >= 2**256 else f"{value!r:.40}"
    return UserError(f"data.keys.{key}: got {shown} at {rows.location(row)} of {rows.title}, {allowed}")


def with_class_numbers(rows: Rows) -> Rows:
    """Returns rows whose labels are numbers: names of classes are numbered in the order of the alphabet.

    The names are those of the whole split, sliced or not.

    Raises:
        UserError: some labels are texts and others are not, or there are too many different texts.
    """
    column = rows.columns["label"]
    column = column.tolist() if isinstance(column, np.ndarray) and column.dtype.kind == "U" else column
    if isinstance(column, np.ndarray | Blobs) or not isinstance(column[int(rows.index[0])], str):
        return rows
    values = list(column)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise _not(rows, "label", value, row, "must be text, as other labels are")
    classes = tuple(sorted(set(values)))
    if len(classes) > _MOST_CLASSES:
        raise UserError(
            f"data.keys.label: {len(classes)} different texts in {rows.title}, must be the names of at most "
            f"{_MOST_CLASSES} classes"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[value] for value in values], np.int32)
    return dataclasses.replace(rows, columns=rows.columns | {"label": labels}, classes=classes)


_MOST_CLASSES = 100_000


def class_labels(rows: Rows, num_classes: int | None) -> np.ndarray:
    """Returns the labels of the selected rows, int32 [N].

    Raises:
        UserError: a label is not an integer, is negative, or is not below the number of classes.
    """
    array = _numbers(rows, "label")
    if array.ndim != 1 or array.dtype.kind == "f":
        raise UserError(f"data.keys.label: got {array.dtype} of shape {array.shape}, must be integers of shape [N]")
    limit = 2**31 if num_classes is None else num_classes
    wrong = (array < 0) | (array >= limit)
    if wrong.any():
        i = int(np.argmax(wrong))
        allowed = ">= 0 and < 2**31" if num_classes is None else f"in [0, {num_classes})"
        location = f"{rows.location(int(rows.index[i]))} of {rows.title}"
        raise UserError(f"data.keys.label: got label {array[i]} at {location}, must be {allowed}")
    return array.astype(np.int32)
