"""Splits in fixed order: whole as arrays, for evaluations (`load_split`), or some rows at a time (`open_split`)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.config import DataConfig, SourceConfig
from ssljax.data.examples import (
    OpenedSource,
    RowExamples,
    class_labels,
    intact_arrays,
    open_examples,
    take_intact,
    tokenizer_of,
    with_class_numbers,
)
from ssljax.data.images import open_picture
from ssljax.data.notes import say_once
from ssljax.data.order import subset
from ssljax.data.rows import last_token
from ssljax.data.selection import Rows, read, same_data, source_content, source_title
from ssljax.data.sources import open_source
from ssljax.data.spec import DataSpec
from ssljax.data.splits import Split, parse_split
from ssljax.data.text import TokenCache
from ssljax.data.tokenizers import Tokenizer, document

if TYPE_CHECKING:
    from PIL.Image import Image


class SplitArrays(dict[str, Any]):
    """The arrays [N, ...] of a split by key, with attributes for evaluations.

    Attributes:
        classes: names of the classes that the labels number; None if the source has no names.
        byte_lengths: [V], the number of UTF-8 bytes of each token, 0 for special tokens; None without text. If a token
            has no fixed number of bytes (WordPiece), it is the mean over the tokens of all texts.
    """

    classes: tuple[str, ...] | None = None
    byte_lengths: np.ndarray | None = None


class SplitRows:
    """The rows of a split in fixed order, prepared as for training.

    Attributes:
        size: number of rows.
        classes: names of the classes that the labels number; None without names.
    """

    def __init__(self, opened: OpenedSource):
        self._examples, self.size, self.classes = opened.examples, opened.examples.size, opened.classes

    def take(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays [B, ...] of rows with their ids, without rows whose image is damaged."""
        return take_intact(self._examples, numbers)

    def names(self, ids: Sequence[int]) -> list[str]:
        """Returns the names of the rows with some ids: the column `file_name` of the source, or file and row."""
        if not isinstance(self._examples, RowExamples):
            return [f"row {i}" for i in ids]
        return _names(self._examples.rows, ids)


class RawRows:
    """The rows of a split in fixed order, before any preparation: whole pictures and texts.

    Attributes:
        size: number of rows.
        columns: keys of the rows, such as "image" and "label".
        classes: names of the classes that the labels number; None without names.

    Args:
        source: the rows.

    Raises:
        UserError: an error in the source, or labels that are no classes.
    """

    def __init__(self, source: SourceConfig):
        rows = read(source)
        self.size, self.columns = len(rows.index), tuple(rows.columns)
        if "label" in rows.columns:
            rows = with_class_numbers(rows)
            self._labels = class_labels(rows, None)
        self._rows, self.classes = rows, rows.classes if "label" in rows.columns else None

    def take(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the ids of rows, int64 [B], and their labels, int32 [B], if they have any."""
        labels = {"label": self._labels[numbers]} if "label" in self.columns else {}
        return {"id": self._rows.index[numbers], **labels}

    def picture(self, number: int, channels: int) -> "Image":
        """Returns the picture of a row at its own size, grey or RGB."""
        return open_picture(self._rows, int(self._rows.index[number]), channels)

    def text(self, number: int) -> str:
        """Returns the text of a row."""
        return "".join(document(self._rows, int(self._rows.index[number])))

    def names(self, ids: Sequence[int]) -> list[str]:
        """Returns the names of the rows with some ids, as `SplitRows.names`."""
        return _names(self._rows, ids)


def _names(rows: Rows, ids: Sequence[int]) -> list[str]:
    if rows.names is None:
        return [rows.location(i) for i in ids]
    names = rows.names()
    return [names[i] for i in ids]


def open_split(
    config: DataConfig,
    split: str,
    *,
    source: str | None = None,
    keys: Mapping[str, Any] | None = None,
    spec: DataSpec | None = None,
) -> SplitRows:
    """Opens the rows of a split; arguments and errors as in `load_split`."""
    chosen = split_source(config, split, source=source, keys=keys)
    return SplitRows(_open(chosen, config, tokenizer_of((chosen,), config), spec))


def _open(chosen: SourceConfig, config: DataConfig, tokenizer: Tokenizer | None, spec: DataSpec | None) -> OpenedSource:
    """Opens a source, whose images get the shape of those of the run."""
    if chosen.source == config.source:
        return open_examples(chosen, config, tokenizer)
    # Classes of other data are another task; an objective's own are checked there.
    like = None if spec is None else spec.elements.get("image", {}).get("shape")
    return open_examples(chosen, dataclasses.replace(config, num_classes=None), tokenizer, like)


def load_split(
    config: DataConfig,
    split: str,
    *,
    source: str | None = None,
    keys: Mapping[str, Any] | None = None,
    where: Mapping[str, Any] | None = None,
    max_examples: int | None = None,
    spec: DataSpec | None = None,
    decode: bool = True,
) -> SplitArrays:
    """Loads a whole split in fixed order, prepared as for training (tokenizer, image size, sequence length).

    Args:
        config: the `data` group of the run; its `max_examples` applies to training only.
        split: name or slice.
        source: URI of another source; None: the source of the config.
        keys, where: as in the config; None: the config, if the source is the same, else empty.
        max_examples: a random subset of this many rows, fixed by `config.seed` (0 if None) and equal in all runs;
            None: all rows.
        spec: description of the training data of the run. Images of another source get the shape of its images, and a
            line of the log says so if the content of a split of its sources has changed since.
        decode: False: images and sounds are `LazyRows`, which are decoded when rows of them are read.

    Raises:
        UserError: as `describe`, or the config has a mixture and `source` is None.
    """
    chosen = split_source(config, split, source=source, keys=keys, where=where)
    tokenizer = tokenizer_of((chosen,), config)
    opened = _open(chosen, config, tokenizer, spec)
    title, content = source_title(chosen), {} if spec is None else spec.content
    if title in content and content[title] != source_content(chosen):
        say_once(f"data.source: the content of {title} is not that on which the run was trained")
    rows = subset(opened.examples.size, max_examples, config.seed or 0)
    out = SplitArrays((take_intact if decode else intact_arrays)(opened.examples, rows))
    out.classes = opened.classes
    if tokenizer is not None and opened.texts is not None:
        out.byte_lengths = _byte_lengths(tokenizer, opened.texts.cache)
    return out


def _byte_lengths(tokenizer: Tokenizer, cache: TokenCache) -> np.ndarray:
    if tokenizer.byte_lengths is not None:
        return tokenizer.byte_lengths
    ends = 0 if last_token(tokenizer.special_ids) is None else len(cache.ends) - 1
    lengths = np.full(tokenizer.vocab_size, cache.bytes / max(len(cache.tokens) - ends, 1))
    lengths[[i for role, i in tokenizer.special_ids.items() if role != "unk"]] = 0
    return lengths


def split_source(
    config: DataConfig,
    split: str,
    *,
    source: str | None = None,
    keys: Mapping[str, Any] | None = None,
    where: Mapping[str, Any] | None = None,
) -> SourceConfig:
    """Returns the source of a split; arguments as in `load_split`.

    Raises:
        UserError: the config has a mixture and `source` is None.
    """
    if source is None and config.source is None:
        raise UserError("data.source: missing; data.mixture has several sources; name one to evaluate on")
    same = source in (None, config.source)
    return SourceConfig(
        source=source or config.source or "",
        split=split,
        keys=dict(keys) if keys is not None else (config.keys if same else {}),
        where=dict(where) if where is not None else (config.where if same else {}),
    )


def shared_rows(first: SourceConfig, second: SourceConfig) -> int:
    """Returns the number of rows (of texts in files: lines) that two splits of a source share; 0 if files differ."""
    a, b = parse_split(first.split), parse_split(second.split)
    if a.name != b.name and "all" not in (a.name, b.name):
        return 0
    if not same_data(first, second, b.name if a.name == "all" else a.name):
        return 0
    if a.name == b.name and first.where == second.where:  # slices of the same rows
        lines = open_source(first.source).table(Split(a.name)).lines
        rows = np.arange(lines() if lines else len(read(dataclasses.replace(first, split=a.name)).index))
        return len(np.intersect1d(rows[a.bounds(len(rows))], rows[b.bounds(len(rows))]))
    return len(np.intersect1d(_numbers(first), _numbers(second)))


def _numbers(config: SourceConfig) -> np.ndarray:
    """Returns the numbers of the selected rows in the split "all"."""
    index, numbers = read(config).index, open_source(config.source).table(parse_split(config.split)).numbers
    return index if numbers is None else numbers()[index]
