"""From a data config to batches: `describe`, `open_data`, `load_split`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.config import DataConfig, Part, cache_root
from ssljax.data.images import Images
from ssljax.data.order import Shuffle, mix, process_slice, subset
from ssljax.data.sources import DEFAULT_KEYS, Rows, choose_keys, fingerprint, open_source, read
from ssljax.data.spec import DataSpec
from ssljax.data.splits import parse_split
from ssljax.data.text import Documents, Packed, Windows, open_tokens
from ssljax.data.tokenizers import Tokenizer, open_tokenizer

_ID = {"id": {"shape": [], "dtype": "int64"}}
_PART_BITS = 40  # of an id in a mixture: id = part << 40 | row of the part


class Examples(Protocol):
    """The examples of one part: `size` of them, `take(rows)` -> arrays without the id, `ids(rows)`."""

    size: int
    elements: dict[str, dict[str, Any]]

    def ids(self, rows: np.ndarray) -> np.ndarray: ...

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class _Opened:
    """A part with what the spec tells about it."""

    examples: Examples
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    texts: Windows | Packed | Documents | None = None


# ---- one part


class RowExamples:
    """Examples that are rows of a table: pictures, labels, other arrays, documents."""

    def __init__(
        self, rows: Rows, images: dict[str, Images], arrays: dict[str, np.ndarray], documents: Documents | None
    ):
        self.rows, self.images, self.arrays, self.documents = rows, images, arrays, documents
        self.size = len(rows.index)
        self.elements = {key: {"shape": list(image.shape), "dtype": "uint8"} for key, image in images.items()}
        self.elements |= {key: {"shape": list(a.shape[1:]), "dtype": a.dtype.name} for key, a in arrays.items()}
        self.elements |= documents.elements if documents else {}

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return self.rows.index[rows]

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        # Threads of NumPy's fancy indexing would not help: 32x32 pictures arrive at memory speed.
        batch = {key: image.array()[rows] for key, image in self.images.items()}
        batch |= {key: array[rows] for key, array in self.arrays.items()}
        return batch | (self.documents.take(rows) if self.documents else {})


def _keys(part: Part) -> dict[str, str]:
    """Name -> column of a part, without reading more than the names of its columns."""
    split = parse_split(part.split)
    keys = choose_keys(part, split.name)
    if keys is None:
        names = open_source(part.source).table(split).names
        keys = {name: name for name in DEFAULT_KEYS if name in names}
    return keys


def _open_part(part: Part, config: DataConfig, tokenizer: Tokenizer | None) -> _Opened:
    keys, root = _keys(part), cache_root(config)
    if "text" in keys and config.mode != "documents":
        # A label that merely happens to be in the file is not missed; what the user named, or a picture, is.
        lost = [key for key in keys if key != "text" and (part.keys or key == "image")]
        if lost:
            raise UserError(
                f"data.mode: {config.mode!r} cuts text without regard to rows, so {', '.join(lost)} would be lost; "
                f"use 'documents', or name only the text in data.keys"
            )
        assert tokenizer is not None
        cache, title = open_tokens(part, tokenizer, root), f"{part.source} [{part.split}]"
        seq_len = _seq_len(config)
        if config.mode == "windows":
            windows = Windows(cache, seq_len, config.overlap, title)
            return _Opened(windows, texts=windows)
        packed = Packed(cache, seq_len, tokenizer.special_ids.get("pad", 0), title)
        return _Opened(packed, texts=packed)

    rows = read(part)
    images, arrays, documents = {}, {}, None
    classes, num_classes = rows.classes, None
    for key in rows.columns:
        if key == "image":
            images[key] = Images(rows, key, fingerprint(part), config.image_size, root)
        elif key == "label":
            known = config.num_classes or (len(classes) if classes else None)
            arrays[key] = _labels(rows, known)
            num_classes = known or int(arrays[key].max()) + 1
        elif key == "text":
            assert tokenizer is not None
            documents = Documents(open_tokens(part, tokenizer, root), tokenizer, _seq_len(config))
        else:
            arrays[key] = _numbers(rows, key)
    examples = RowExamples(rows, images, arrays, documents)
    return _Opened(examples, num_classes, classes if "label" in rows.columns else None, documents)


def _seq_len(config: DataConfig) -> int:
    if config.seq_len is None:
        raise UserError(
            "data.seq_len: missing; text needs a number of tokens an example (or leave text out of data.keys)"
        )
    return config.seq_len


def _numbers(rows: Rows, key: str) -> np.ndarray:
    column = rows.columns[key]
    if isinstance(column, list):
        for row in rows.index:
            if not isinstance(column[row], bool | int | float | list):
                told = f"{rows.where(int(row))} of {rows.title} holds {column[row]!r:.40}"
                raise UserError(f"data.keys.{key}: {told}, must be a number")
        column = [column[row] for row in rows.index]
    elif isinstance(column, np.ndarray):
        column = column[rows.index]
    try:
        array = np.asarray(column)
    except ValueError:  # lists of different lengths
        array = np.zeros(0, object)
    if array.dtype.kind not in "biuf":
        raise UserError(f"data.keys.{key}: the column of {rows.title} does not hold numbers of one shape")
    return array


def _labels(rows: Rows, known: int | None) -> np.ndarray:
    """int32 [N].

    Raises:
        UserError: not integers; negative; not below the number of classes, where that is known.
    """
    array = _numbers(rows, "label")
    if array.ndim != 1 or array.dtype.kind == "f":
        raise UserError(f"data.keys.label: got {array.dtype} of shape {array.shape}, labels are integers of shape [N]")
    wrong = array.astype(np.int64) < 0
    wrong |= False if known is None else array >= known
    if wrong.any():
        i = int(np.argmax(wrong))
        allowed = ">= 0" if known is None else f"in [0, {known})"
        place = rows.where(int(rows.index[i]))
        raise UserError(
            f"data.keys.label: label {array[i]} at {place} of {rows.title} is out of range, must be {allowed}"
        )
    return array.astype(np.int32)


def _tokenizer_for(parts: tuple[Part, ...], config: DataConfig) -> Tokenizer | None:
    return open_tokenizer(config) if any("text" in _keys(part) for part in parts) else None


# ---- the training stream


class _Stream:
    """n-th example of a run -> arrays, for one stream (the main one, or a further one)."""

    def __init__(self, parts: list[_Opened], weights: tuple[float, ...], seed: int, number: int, limit: int | None):
        self.parts, self.weights = [p.examples for p in parts], weights
        for part in self.parts[1:]:
            if part.elements != self.parts[0].elements:
                raise UserError(f"data.mixture: sources differ in form: {self.parts[0].elements} and {part.elements}")
        self.rows = [subset(part.size, limit, seed) for part in self.parts]
        self.size = sum(map(len, self.rows))
        self.shuffles = [Shuffle(len(rows), seed, number << 16 | k) for k, rows in enumerate(self.rows)]
        self.elements = _ID | self.parts[0].elements

    def _locate(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Part [N] and row in it [N] of the examples numbered n."""
        part, own = mix(n, self.weights)
        rows = np.empty_like(own)
        for k in np.unique(part):
            here = part == k
            rows[here] = self.rows[k][self.shuffles[k](own[here])]
        return part, rows

    def ids(self, n: np.ndarray) -> np.ndarray:
        return self._ids(*self._locate(n))

    def _ids(self, part: np.ndarray, rows: np.ndarray) -> np.ndarray:
        ids = np.empty(len(part), np.int64)
        for k in np.unique(part):
            ids[part == k] = self.parts[k].ids(rows[part == k]) + (int(k) << _PART_BITS)
        return ids

    def batch(self, n: np.ndarray) -> dict[str, np.ndarray]:
        part, rows = self._locate(n)
        batch = {"id": self._ids(part, rows)}
        used = np.unique(part)
        if len(used) == 1:
            return batch | self.parts[used[0]].take(rows)
        for key, element in self.elements.items():
            if key != "id":
                batch[key] = np.empty((len(n), *element["shape"]), element["dtype"])
        for k in used:
            for key, values in self.parts[k].take(rows[part == k]).items():
                batch[key][part == k] = values
        return batch


class Dataset:
    """Training batches as a pure function of (seed, step): `batch(step)` of any step, in any order, on any process."""

    def __init__(self, spec: DataSpec, batch_size: int, main: _Stream, streams: dict[str, tuple[_Stream, int]]):
        self.spec, self.batch_size = spec, batch_size
        self._main, self._streams = main, streams

    def batch(self, step: int, process: int = 0, processes: int = 1) -> dict[str, Any]:
        """The part of the global batch of `step` that one process loads.

        Returns:
            Arrays [B / processes, ...] by key, `id` int64 always among them; further streams as nested mappings.
        """
        batch: dict[str, Any] = self._main.batch(_numbers_of(step, self.batch_size, process, processes))
        for name, (stream, rows) in self._streams.items():
            batch[name] = stream.batch(_numbers_of(step, rows, process, processes))
        return batch

    def ids(self, step: int) -> np.ndarray:
        """Ids, int64 [B], of the global batch of `step` (main stream)."""
        return self._main.ids(_numbers_of(step, self.batch_size, 0, 1))

    def epoch(self, step: int) -> int:
        """The epoch that the first example of `step` belongs to."""
        return step * self.batch_size // self._main.size


def _numbers_of(step: int, rows: int, process: int, processes: int) -> np.ndarray:
    part = process_slice(rows, process, processes)
    return step * rows + np.arange(part.start, part.stop, dtype=np.int64)


def _open(config: DataConfig, seed: int) -> tuple[DataSpec, _Stream, dict[str, _Stream]]:
    if config.seed is not None:
        seed = config.seed
    streams = {name: Part(s.source, s.split, s.keys, s.where) for name, s in config.streams.items()}
    tokenizer = _tokenizer_for((*config.parts, *streams.values()), config)
    opened = [_open_part(part, config, tokenizer) for part in config.parts]
    weights = tuple(part.weight for part in config.mixture) or (1.0,)
    main = _Stream(opened, weights, seed, 0, config.max_examples)
    further = {
        name: _Stream([_open_part(part, config, tokenizer)], (1.0,), seed, number, None)
        for number, (name, part) in enumerate(streams.items(), 1)
    }
    for name in further:
        if name in main.elements:
            raise UserError(f"data.streams.{name}: the batch has a key of this name already; choose another")
    counts = [p.num_classes for p in opened if p.num_classes is not None]
    spec = DataSpec(
        elements=main.elements,
        size=main.size,
        num_classes=max(counts) if counts else None,
        classes=opened[0].classes,
        streams={
            name: {"elements": s.elements, "size": s.size, "ratio": config.streams[name].ratio}
            for name, s in further.items()
        },
    )
    texts = [p.texts for p in opened if p.texts is not None]
    if tokenizer is not None and texts:
        cached = sum(len(t.cache.tokens) for t in texts)
        spec = dataclasses.replace(
            spec,
            vocab_size=tokenizer.vocab_size,
            special_ids=dict(tokenizer.special_ids),
            max_len=config.seq_len,
            tokens=int(sum(t.lengths(rows).sum() for t, rows in zip(texts, main.rows))),
            bytes_per_token=sum(t.cache.bytes for t in texts) / max(cached, 1),
        )
    return spec, main, further


def describe(config: DataConfig) -> DataSpec:
    """What batches of `config` look like, without decoding pictures; text is tokenised (once) to be counted.

    Raises:
        UserError: everything that is wrong with the sources: missing files, unknown splits and columns, bad labels.
    """
    return _open(config, 0)[0]


def open_data(config: DataConfig, batch_size: int, seed: int = 0) -> Dataset:
    """The training batches of `config`.

    Example n = step x batch_size + j of the run is row perm(seed, epoch)(n mod size) of epoch n // size: batches are
    always full and cross epochs, and depend on nothing else.

    Args:
        config: the `data` group.
        batch_size: global.
        seed: of the run; `config.seed` goes before it.

    Raises:
        UserError: as `describe`; and a stream whose ratio x batch_size is not a whole number of rows.
    """
    spec, main, further = _open(config, seed)
    streams = {}
    for name, stream in further.items():
        rows = config.streams[name].ratio * batch_size
        if abs(rows - round(rows)) > 1e-6 or round(rows) < 1:
            raise UserError(
                f"data.streams.{name}.ratio: ratio x batch_size is {rows:g}, must be a whole number of rows"
            )
        streams[name] = (stream, round(rows))
    return Dataset(spec, batch_size, main, streams)


# ---- whole splits, for evaluation


class Split(dict[str, np.ndarray]):
    """Arrays [N, ...] of a split by key, with what an evaluation needs beside them.

    Attributes:
        classes: names of the labels, where the source has them.
        tokens: tokens in the rows, padding not counted; None without text.
        bytes: UTF-8 bytes of text that these tokens stand for; None without text. Bits per byte of a model that
            scored `count` tokens with a log-likelihood of -L nats: L / ln 2 / (bytes * count / tokens).
    """

    classes: tuple[str, ...] | None = None
    tokens: int | None = None
    bytes: float | None = None


def load_split(
    config: DataConfig,
    split: str,
    *,
    source: str | None = None,
    keys: Mapping[str, Any] | None = None,
    where: Mapping[str, Any] | None = None,
    max_examples: int | None = None,
) -> Split:
    """A whole split as arrays, prepared as for training (same tokenizer, image size, sequence length), in fixed order.

    Args:
        config: the `data` group of the run; its `max_examples` limits training only, so it plays no part here.
        split: name or slice.
        source: another source than that of training.
        keys, where: as in the config; None: those of the config where the source is the config's, else none.
        max_examples: a random subset of this many rows, fixed by `config.seed` (0 if None): the same for every run.

    Raises:
        UserError: as `describe`.
    """
    if source is None and config.source is None:
        raise UserError("data.source: missing; data.mixture has several sources, name the one to evaluate on")
    same = source in (None, config.source)
    part = Part(
        source=source or config.source or "",
        split=split,
        keys=dict(keys) if keys is not None else (config.keys if same else {}),
        where=dict(where) if where is not None else (config.where if same else {}),
    )
    tokenizer = _tokenizer_for((part,), config)
    opened = _open_part(part, config, tokenizer)
    rows = subset(opened.examples.size, max_examples, config.seed or 0)
    out = Split(id=opened.examples.ids(rows), **opened.examples.take(rows))
    out.classes = opened.classes
    if tokenizer is not None and opened.texts is not None:
        out.tokens = int(opened.texts.lengths(rows).sum())
        if tokenizer.byte_lengths is not None:
            out.bytes = float(tokenizer.byte_lengths[out["tokens"]].sum())
        else:  # WordPiece: the share of the whole text that falls to these tokens
            out.bytes = opened.texts.cache.bytes * out.tokens / max(len(opened.texts.cache.tokens), 1)
    return out
