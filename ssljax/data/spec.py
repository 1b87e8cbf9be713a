"""The description of a dataset that models and objectives are created from: shapes, sizes, vocabulary, classes."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssljax.data import order


@dataclass(frozen=True)
class DataSpec:
    """Describes the batches of a `DataConfig`. Written to and read from data.json in the workdir.

    Attributes:
        elements: key of the batch -> {"shape": shape of one example, "dtype"}.
        size: examples in an epoch; in a mixture, the sum over its sources.
        num_classes: number of label values; None without labels.
        classes: names of the classes; None if the source has no names.
        vocab_size: number of token ids, special tokens included; None without text.
        special_ids: ids of the special tokens pad, mask, cls, sep, bos, eos, unk, as far as the tokenizer has them.
        sentence_ends: ids of the tokens that end a sentence; empty without text.
        max_len: tokens in an example; None without text.
        tokens: tokens in an epoch, without padding; None without text.
        bytes_per_token: UTF-8 bytes of text per token, for the conversion of nats per token to bits per byte.
        word_starts: the tokens that begin a word, as the hexadecimal digits of one bit for each id; None without text,
            or if the tokenizer marks the ends of words instead. See `begins_word`.
        sample_rate: samples per second of "audio"; None without audio.
        streams: name -> {"elements", "size", "ratio"} of the further streams.
        content: source and split -> digest of their content, for all sources.
        order: version of the order of the examples.
    """

    elements: dict[str, dict[str, Any]]
    size: int
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    vocab_size: int | None = None
    special_ids: dict[str, int] = field(default_factory=dict)
    sentence_ends: tuple[int, ...] = ()
    max_len: int | None = None
    tokens: int | None = None
    bytes_per_token: float | None = None
    word_starts: str | None = None
    sample_rate: int | None = None
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)
    order: int = order.VERSION

    def to_json(self) -> str:
        """Returns the description as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "DataSpec":
        """Inverse of `to_json`.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: the text is not a description.
        """
        values = {"order": 1} | json.loads(text)  # the first version was not written
        if values["classes"] is not None:
            values["classes"] = tuple(values["classes"])
        values["sentence_ends"] = tuple(values.get("sentence_ends", ()))
        spec = cls(**values)
        for name in ("size", "num_classes", "vocab_size", "max_len", "tokens", "sample_rate", "order"):
            value = getattr(spec, name)
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"{name} is {value!r}")
        for ids in (spec.special_ids, spec.content):
            ids.items()
        spec.zeros(1)
        spec.begins_word()
        return spec

    def begins_word(self) -> np.ndarray | None:
        """Returns for each token id whether it begins a word, bool [V]; None if that is unknown."""
        if self.word_starts is None or self.vocab_size is None:
            return None
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.word_starts), np.uint8))
        if not 0 <= len(bits) - self.vocab_size < 8:
            raise ValueError(f"word_starts has {len(bits)} bits for {self.vocab_size} ids")
        return bits[: self.vocab_size].astype(bool)

    def zeros(self, batch_size: int) -> dict[str, Any]:
        """Returns a batch of zeros with the shapes and dtypes of a real batch, streams included."""
        batch: dict[str, Any] = _zeros(self.elements, batch_size)
        for name, stream in self.streams.items():
            batch[name] = _zeros(stream["elements"], round(stream["ratio"] * batch_size))
        return batch


def packed_words(begins: np.ndarray | None) -> str | None:
    """Returns `DataSpec.word_starts` of tokens that begin a word or not, bool [V]."""
    return None if begins is None else np.packbits(begins).tobytes().hex()


def _zeros(elements: dict[str, dict[str, Any]], rows: int) -> dict[str, np.ndarray]:
    return {key: np.zeros((rows, *e["shape"]), e["dtype"]) for key, e in elements.items()}


def device_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a batch that go to the device: all except `id`, also in nested streams."""
    return {k: device_batch(v) if isinstance(v, Mapping) else v for k, v in batch.items() if k != "id"}
