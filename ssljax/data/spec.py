"""What the rest of the system learns about the data: shapes, sizes, vocabulary, classes."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DataSpec:
    """A description of the batches of a `DataConfig`; JSON both ways, saved in the workdir.

    Attributes:
        elements: key of the batch -> {"shape": of one example, "dtype"}.
        size: examples an epoch (of a mixture: those of all its sources together).
        num_classes: number of label values, None without labels.
        classes: their names, where the source has names.
        vocab_size: number of token ids, specials included; None without text.
        special_ids: those of pad, mask, cls, sep, bos, eos, unk that the tokenizer has.
        max_len: tokens in an example; None without text.
        tokens: tokens an epoch, padding not counted.
        bytes_per_token: UTF-8 bytes of text per token, to turn nats per token into bits per byte.
        streams: name -> {"elements", "size", "ratio"} of the further streams.
    """

    elements: dict[str, dict[str, Any]]
    size: int
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    vocab_size: int | None = None
    special_ids: dict[str, int] = field(default_factory=dict)
    max_len: int | None = None
    tokens: int | None = None
    bytes_per_token: float | None = None
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "DataSpec":
        values = json.loads(text)
        if values["classes"] is not None:
            values["classes"] = tuple(values["classes"])
        return cls(**values)

    def zeros(self, batch_size: int) -> dict[str, Any]:
        """A batch of zeros with the shapes and types of a real one: to initialise, to evaluate shapes."""
        batch: dict[str, Any] = _zeros(self.elements, batch_size)
        for name, stream in self.streams.items():
            batch[name] = _zeros(stream["elements"], round(stream["ratio"] * batch_size))
        return batch


def _zeros(elements: dict[str, dict[str, Any]], rows: int) -> dict[str, np.ndarray]:
    return {key: np.zeros((rows, *e["shape"]), e["dtype"]) for key, e in elements.items()}


def device_part(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without what stays on the host."""
    return {k: device_part(v) if isinstance(v, Mapping) else v for k, v in batch.items() if k != "id"}
