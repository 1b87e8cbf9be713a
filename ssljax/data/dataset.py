"""The training batches of a `data` group: `describe` and `open_data`."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.config import DataConfig
from ssljax.data.declared import AbsentBatches, declared_spec, is_declared
from ssljax.data.examples import OpenedSource, open_examples, renumbered, tokenizer_of
from ssljax.data.order import BatchRanges, Shuffle, mix, subset
from ssljax.data.selection import selected_keys, source_content, source_title
from ssljax.data.spec import DataSpec, packed_words
from ssljax.data.tokenizers import Tokenizer

log = logging.getLogger(__name__)

Part = Callable[[int], np.ndarray]  # rows of a batch -> numbers of the rows to load

_ID = {"id": {"shape": [], "dtype": "int64"}}
_BLOCK = 2**20  # rows whose lengths are in memory at the same time
_SOURCE_SHIFT = 40  # id of an example of a mixture: source << 40 | id in the source


def describe(config: DataConfig) -> DataSpec:
    """Describes the batches of `config`. Images are not decoded. Texts are tokenised (and cached), to count tokens.

    Raises:
        UserError: an error in a source: missing files, unknown splits or columns, invalid labels.
    """
    return declared_spec(config) if is_declared(config) else _open(config, 0).spec


def open_data(config: DataConfig, batch_size: int, seed: int = 0) -> "Dataset":
    """Opens the training batches of `config`.

    Row j of the batch of `step` is example n = step x batch_size + j of the run. This example is row
    order(seed, epoch)(n mod size) of the data, with epoch = n // size. Batches depend on nothing else. They are always
    full, and may contain rows of two epochs, but no row twice unless they have more rows than the data.

    Args:
        config: the `data` group.
        batch_size: rows of the global batch.
        seed: seed of the run, used if `config.seed` is None.

    Raises:
        UserError: as `describe`, or ratio x batch_size of a stream is not a whole number of rows. Batches of declared
            data raise it when they are read.
    """
    if is_declared(config):
        return Dataset(declared_spec(config), AbsentBatches(batch_size), {})
    opened = _open(config, seed)
    batches, further = _Batches(opened.main, batch_size, "batch_size"), {}
    for name, stream in opened.further.items():
        rows = config.streams[name].ratio * batch_size
        if abs(rows - round(rows)) > 1e-6 or round(rows) < 1:
            raise UserError(
                f"data.streams.{name}.ratio: ratio x batch_size is {rows:g}, must be a whole number of rows"
            )
        further[name] = _Batches(stream, round(rows), f"data.streams.{name}.ratio")
    return Dataset(opened.spec, batches, further)


class Dataset:
    """Training batches as a pure function of (seed, step), for any step, in any order, on any process.

    Attributes:
        spec: description of the batches.
        batch_size: rows of the global batch.
    """

    def __init__(self, spec: DataSpec, batches: "_Batches | AbsentBatches", streams: dict[str, "_Batches"]):
        self.spec, self.batch_size = spec, batches.rows
        self._batches, self._streams = batches, streams

    def batch(self, step: int, part: Part = np.arange) -> dict[str, Any]:
        """Returns rows of the global batch of `step`; nothing else is read.

        Args:
            step: number of the step.
            part: function from the rows of a batch, B (a stream has its own), to the numbers [n] of the rows to load.

        Returns:
            key -> array [n, ...], with `id` int64; further streams as nested mappings.
        """
        batch: dict[str, Any] = self._batches.batch(step, part)
        for name, stream in self._streams.items():
            batch[name] = stream.batch(step, part)
        return batch

    def ids(self, step: int) -> np.ndarray:
        """Returns the ids, int64 [B], that the order gives to the global batch of `step`, without further streams."""
        return self._batches.ids(step)

    def epoch(self, step: int) -> int:
        """Returns the epoch of the first example of `step`."""
        return step * self.batch_size // self.spec.size


class _Stream:
    """The rows of one source, or of all sources of a mixture, that a stream of examples is drawn from.

    Args:
        sources: the sources.
        weights: weights of the sources.
        seed: seed of the order.
        number: number of the stream, 0 for the main one; streams have independent orders.
        limit: trains on a random subset of this many examples of each source; None = all.

    Raises:
        UserError: the sources have different keys, shapes or dtypes.
    """

    def __init__(
        self, sources: list[OpenedSource], weights: tuple[float, ...], seed: int, number: int, limit: int | None
    ):
        self.sources, self.weights = [source.examples for source in sources], weights
        self.seed, self.number = seed, number
        first = self.sources[0]
        for source in self.sources[1:]:
            if source.elements != first.elements:
                raise UserError(
                    f"data.mixture: sources must have equal keys, shapes and dtypes, got {first.elements} and "
                    f"{source.elements}"
                )
        # None: all rows, whose numbers would need 8 bytes each.
        self.rows = [
            None if limit is None or limit >= source.size else subset(source.size, limit, seed)
            for source in self.sources
        ]
        self.sizes = [source.size if rows is None else len(rows) for source, rows in zip(self.sources, self.rows)]
        self.blocks = [
            source.blocks if source.blocks is None or rows is None else source.blocks.of(rows)
            for source, rows in zip(sources, self.rows)
        ]
        self.size = sum(self.sizes)
        self.elements = _ID | first.elements


class _Batches:
    """The batches of a stream as a function of the step.

    Args:
        stream: the rows.
        rows: rows of the global batch.
        key: config key that sets `rows`, for the line that says that a batch has more rows than the data.
    """

    def __init__(self, stream: _Stream, rows: int, key: str):
        self.stream, self.rows = stream, rows
        self.shuffles = []
        for k, size in enumerate(stream.sizes):
            ranges = BatchRanges(rows, stream.weights, k)
            self.shuffles.append(Shuffle(size, stream.seed, stream.number << 16 | k, ranges, stream.blocks[k]))
            largest = max(ranges.first(step + 1) - ranges.first(step) for step in range(8))
            if largest > size:
                log.warning("%s: a batch takes %d examples of %d, so it has some more than once", key, largest, size)

    def ids(self, step: int) -> np.ndarray:
        """Returns the ids, int64 [B], of the global batch of `step`."""
        return self._ids(*self._locate(self._numbers(step, np.arange)))

    def batch(self, step: int, part: Part) -> dict[str, np.ndarray]:
        """Returns the arrays [n, ...] of the rows `part` of a batch, with their ids."""
        source, rows = self._locate(self._numbers(step, part))
        elements = self.stream.elements.items()
        batch: dict[str, np.ndarray] = {}
        for k in (used := np.unique(source)):
            taken = self.stream.sources[k].take(rows[source == k])
            taken["id"] = taken["id"] + (int(k) << _SOURCE_SHIFT)
            if len(used) == 1:
                return taken
            batch = batch or {key: np.empty((len(rows), *e["shape"]), e["dtype"]) for key, e in elements}
            for key, values in taken.items():
                batch[key][source == k] = values
        return batch

    def _numbers(self, step: int, part: Part) -> np.ndarray:
        return step * self.rows + part(self.rows).astype(np.int64)

    def _locate(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns source [B] and row in the source [B] of the examples with numbers n [B]."""
        source, number = mix(n, self.stream.weights)
        rows = np.empty_like(number)
        for k in np.unique(source):
            selected = source == k
            shuffled, chosen = self.shuffles[k](number[selected]), self.stream.rows[k]
            rows[selected] = shuffled if chosen is None else chosen[shuffled]
        return source, rows

    def _ids(self, source: np.ndarray, rows: np.ndarray) -> np.ndarray:
        ids = np.empty(len(source), np.int64)
        for k in np.unique(source):
            selected = source == k
            ids[selected] = self.stream.sources[k].ids(rows[selected]) + (int(k) << _SOURCE_SHIFT)
        return ids


@dataclass(frozen=True)
class _Opened:
    """The streams of a config and their description."""

    spec: DataSpec
    main: _Stream
    further: dict[str, _Stream]


def _open(config: DataConfig, seed: int) -> _Opened:
    seed = seed if config.seed is None else config.seed
    further = {name: stream.rows for name, stream in config.streams.items()}
    groups = [f"data.mixture[{i}]" if config.mixture else "data" for i in range(len(config.sources))]
    groups += [f"data.streams.{name}" for name in further]
    parts = (*config.sources, *further.values())
    for group, source in zip(groups, parts, strict=True):
        with _errors_of(group):
            selected_keys(source)  # finds unknown splits, if the source's own columns are read
    tokenizer = tokenizer_of(parts, config)
    opened: list[OpenedSource] = []
    for group, source in zip(groups, parts, strict=True):
        with _errors_of(group):
            opened.append(open_examples(source, config, tokenizer))
    sources = _with_one_numbering(config, opened[: len(config.sources)])
    weights = tuple(source.weight for source in config.mixture) or (1.0,)
    main = _Stream(sources, weights, seed, 0, config.max_examples)
    streams = {}
    for number, (name, rows) in enumerate(zip(further, opened[len(config.sources) :]), 1):
        streams[name] = _Stream([_numbered_as(sources[0], rows, name)], (1.0,), seed, number, None)
        if name in main.elements:
            raise UserError(f"data.streams.{name}: the batch already has a key {name!r}; choose another name")
    return _Opened(_spec(config, sources, main, streams, tokenizer), main, streams)


@contextlib.contextmanager
def _errors_of(group: str) -> Iterator[None]:
    """Puts the keys of a group, such as `data.streams.unlabeled`, in the place of those of `data` in error messages."""
    try:
        yield
    except UserError as error:
        key = re.match(r"data\.(source|split|keys|where)\b", str(error))
        if key is None:
            raise
        raise UserError(f"{group}.{str(error).removeprefix('data.')}") from error


def _with_one_numbering(config: DataConfig, sources: list[OpenedSource]) -> list[OpenedSource]:
    """Returns the sources of a mixture with labels that mean the same class in all of them, matched by its name.

    Raises:
        UserError: some sources name their classes, others have numbers only; or there are too many names.
    """
    named = [source.classes for source in sources if source.classes is not None]
    if len(set(named)) == 0 or (len(set(named)) == 1 and len(named) == len(sources)):
        return sources
    classes = tuple(dict.fromkeys(name for names in named for name in names))
    for part, source in zip(config.mixture, sources):
        if source.num_classes is not None and source.classes is None and not _are_numbers(classes, source):
            raise UserError(
                f"data.mixture: labels of {part.source} are numbers without names, but other sources name their "
                f"classes ({', '.join(classes[:4])}, ...), so that a number could mean two classes; leave `label` out "
                f"of its keys"
            )
    if config.num_classes is not None and config.num_classes < len(classes):
        raise UserError(f"data.num_classes: got {config.num_classes}, must be at least the {len(classes)} classes")
    return [renumbered(source, classes) for source in sources]


def _are_numbers(classes: tuple[str, ...], source: OpenedSource) -> bool:
    """Returns True if the names of classes are the labels 0, 1, ... themselves, as for digits."""
    return classes == tuple(str(i) for i in range(len(classes))) and (source.num_classes or 0) <= len(classes)


def _numbered_as(main: OpenedSource, stream: OpenedSource, name: str) -> OpenedSource:
    """Returns a stream with the class numbers of the main source.

    Raises:
        UserError: the stream has classes that the main source does not have.
    """
    if main.classes is None or stream.classes is None:
        return stream
    unknown = [c for c in stream.classes if c not in main.classes]
    if unknown:
        raise UserError(
            f"data.streams.{name}: the classes {', '.join(unknown[:4])} are none of the main source; leave `label` out "
            f"of its keys"
        )
    return renumbered(stream, main.classes)


def _spec(
    config: DataConfig,
    sources: list[OpenedSource],
    main: _Stream,
    streams: dict[str, _Stream],
    tokenizer: Tokenizer | None,
) -> DataSpec:
    counts = [source.num_classes for source in sources if source.num_classes is not None]
    spec = DataSpec(
        elements=main.elements,
        size=main.size,
        num_classes=config.num_classes or max(counts) if counts else None,
        classes=sources[0].classes,
        sample_rate=config.sample_rate if "audio" in main.elements else None,
        streams={
            name: {"elements": s.elements, "size": s.size, "ratio": config.streams[name].ratio}
            for name, s in streams.items()
        },
        content={
            source_title(source): source_content(source) for source in (*config.sources, *config.streams.values())
        },
    )
    texts = [source.texts for source in sources if source.texts is not None]
    if tokenizer is None or not texts:
        return spec
    return dataclasses.replace(
        spec,
        vocab_size=tokenizer.vocab_size,
        special_ids=dict(tokenizer.special_ids),
        sentence_ends=tokenizer.sentence_ends,
        max_len=config.seq_len,
        tokens=sum(_tokens(t, rows, size) for t, rows, size in zip(texts, main.rows, main.sizes)),
        word_starts=packed_words(tokenizer.word_starts),
        bytes_per_token=sum(t.cache.bytes for t in texts) / max(sum(len(t.cache.tokens) for t in texts), 1),
    )


def _tokens(texts: Any, rows: np.ndarray | None, size: int) -> int:
    """Returns the number of tokens of rows, without padding; None: of all `size` rows."""
    starts = range(0, size if rows is None else len(rows), _BLOCK)
    blocks = (np.arange(i, min(i + _BLOCK, size)) if rows is None else rows[i : i + _BLOCK] for i in starts)
    return sum(int(texts.lengths(block).sum()) for block in blocks)
