"""The training batches of a `data` group: `describe` and `open_data`."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.config import DataConfig, SourceConfig
from ssljax.data.examples import OpenedSource, open_examples, tokenizer_of
from ssljax.data.order import Shuffle, mix, process_slice, subset
from ssljax.data.spec import DataSpec
from ssljax.data.tokenizers import Tokenizer

_ID = {"id": {"shape": [], "dtype": "int64"}}
_SOURCE_SHIFT = 40  # id of an example of a mixture: source << 40 | id in the source


def describe(config: DataConfig) -> DataSpec:
    """Describes the batches of `config`. Images are not decoded. Texts are tokenised (and cached), to count tokens.

    Raises:
        UserError: an error in a source: missing files, unknown splits or columns, invalid labels.
    """
    return _open(config, 0).spec


def open_data(config: DataConfig, batch_size: int, seed: int = 0) -> "Dataset":
    """Opens the training batches of `config`.

    Row j of the batch of `step` is example n = step x batch_size + j of the run. This example is row
    perm(seed, epoch)(n mod size) of the data, with epoch = n // size. Batches depend on nothing else. They are always
    full, and may contain rows of two epochs.

    Args:
        config: the `data` group.
        batch_size: rows of the global batch.
        seed: seed of the run, used if `config.seed` is None.

    Raises:
        UserError: as `describe`, or ratio x batch_size of a stream is not a whole number of rows.
    """
    opened = _open(config, seed)
    further = {}
    for name, stream in opened.further.items():
        rows = config.streams[name].ratio * batch_size
        if abs(rows - round(rows)) > 1e-6 or round(rows) < 1:
            raise UserError(
                f"data.streams.{name}.ratio: ratio x batch_size is {rows:g}, must be a whole number of rows"
            )
        further[name] = (stream, round(rows))
    return Dataset(opened.spec, batch_size, opened.main, further)


class Dataset:
    """Training batches as a pure function of (seed, step), for any step, in any order, on any process.

    Attributes:
        spec: description of the batches.
        batch_size: rows of the global batch.
    """

    def __init__(self, spec: DataSpec, batch_size: int, main: "_Stream", streams: dict[str, tuple["_Stream", int]]):
        self.spec, self.batch_size = spec, batch_size
        self._main, self._streams = main, streams

    def batch(self, step: int, process: int = 0, processes: int = 1) -> dict[str, Any]:
        """Returns the part of the global batch of `step` that one process loads.

        Returns:
            key -> array [B / processes, ...], with `id` int64; further streams as nested mappings.
        """
        batch: dict[str, Any] = self._main.batch(_example_numbers(step, self.batch_size, process, processes))
        for name, (stream, rows) in self._streams.items():
            batch[name] = stream.batch(_example_numbers(step, rows, process, processes))
        return batch

    def ids(self, step: int) -> np.ndarray:
        """Returns the ids, int64 [B], of the global batch of `step`, without further streams."""
        return self._main.ids(_example_numbers(step, self.batch_size, 0, 1))

    def epoch(self, step: int) -> int:
        """Returns the epoch of the first example of `step`."""
        return step * self.batch_size // self._main.size


def _example_numbers(step: int, rows: int, process: int, processes: int) -> np.ndarray:
    part = process_slice(rows, process, processes)
    return step * rows + np.arange(part.start, part.stop, dtype=np.int64)


class _Stream:
    """A function from the number of an example in the run to its arrays, over the sources of a mixture.

    Args:
        sources: one source, or all sources of a mixture.
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
        first = self.sources[0]
        for source in self.sources[1:]:
            if source.elements != first.elements:
                raise UserError(
                    f"data.mixture: sources must have equal keys, shapes and dtypes, got {first.elements} and "
                    f"{source.elements}"
                )
        self.rows = [subset(source.size, limit, seed) for source in self.sources]
        self.size = sum(map(len, self.rows))
        self.shuffles = [Shuffle(len(rows), seed, number << 16 | k) for k, rows in enumerate(self.rows)]
        self.elements = _ID | first.elements

    def ids(self, n: np.ndarray) -> np.ndarray:
        """Returns the ids [B] of the examples with numbers n [B]."""
        return self._ids(*self._locate(n))

    def batch(self, n: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays [B, ...] of the examples with numbers n [B], with their ids."""
        source, rows = self._locate(n)
        batch = {"id": self._ids(source, rows)}
        used = np.unique(source)
        if len(used) == 1:
            return batch | self.sources[used[0]].take(rows)
        for key, element in self.elements.items():
            if key != "id":
                batch[key] = np.empty((len(n), *element["shape"]), element["dtype"])
        for k in used:
            for key, values in self.sources[k].take(rows[source == k]).items():
                batch[key][source == k] = values
        return batch

    def _locate(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns source [B] and row in the source [B] of the examples with numbers n [B]."""
        source, number = mix(n, self.weights)
        rows = np.empty_like(number)
        for k in np.unique(source):
            selected = source == k
            rows[selected] = self.rows[k][self.shuffles[k](number[selected])]
        return source, rows

    def _ids(self, source: np.ndarray, rows: np.ndarray) -> np.ndarray:
        ids = np.empty(len(source), np.int64)
        for k in np.unique(source):
            selected = source == k
            ids[selected] = self.sources[k].ids(rows[selected]) + (int(k) << _SOURCE_SHIFT)
        return ids


@dataclass(frozen=True)
class _Opened:
    """The streams of a config and their description."""

    spec: DataSpec
    main: _Stream
    further: dict[str, _Stream]


def _open(config: DataConfig, seed: int) -> _Opened:
    seed = seed if config.seed is None else config.seed
    further = {name: SourceConfig(s.source, s.split, s.keys, s.where) for name, s in config.streams.items()}
    tokenizer = tokenizer_of((*config.sources, *further.values()), config)
    sources = [open_examples(source, config, tokenizer) for source in config.sources]
    weights = tuple(source.weight for source in config.mixture) or (1.0,)
    main = _Stream(sources, weights, seed, 0, config.max_examples)
    streams = {
        name: _Stream([open_examples(source, config, tokenizer)], (1.0,), seed, number, None)
        for number, (name, source) in enumerate(further.items(), 1)
    }
    for name in streams:
        if name in main.elements:
            raise UserError(f"data.streams.{name}: the batch already has a key {name!r}; choose another name")
    return _Opened(_spec(config, sources, main, streams, tokenizer), main, streams)


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
        num_classes=max(counts) if counts else None,
        classes=sources[0].classes,
        streams={
            name: {"elements": s.elements, "size": s.size, "ratio": config.streams[name].ratio}
            for name, s in streams.items()
        },
    )
    texts = [source.texts for source in sources if source.texts is not None]
    if tokenizer is None or not texts:
        return spec
    return dataclasses.replace(
        spec,
        vocab_size=tokenizer.vocab_size,
        special_ids=dict(tokenizer.special_ids),
        max_len=config.seq_len,
        tokens=int(sum(t.lengths(rows).sum() for t, rows in zip(texts, main.rows))),
        bytes_per_token=sum(t.cache.bytes for t in texts) / max(sum(len(t.cache.tokens) for t in texts), 1),
    )
