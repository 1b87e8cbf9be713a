"""Declared data: the shapes, size and vocabulary of data that are not here, so that a run can be planned and inspected.

    declared:rows=1281167,image=224x224x3,label=1000      images with labels of 1,000 classes
    declared:tokens=10B,text=50257                        texts of 10^10 tokens of a vocabulary of 50,257
    declared:rows=400M,image=224x224x3,text=49408         pairs of an image and a text

The keys of the `data` group (image_size, seq_len, mode, ...) give batches their form, as for data that are here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np

from ssljax.base.errors import UserError, nearest
from ssljax.data.config import DataConfig, SourceConfig
from ssljax.data.rows import KEYS
from ssljax.data.selection import selected_keys, source_content, source_title
from ssljax.data.sources import Column, Table, open_source
from ssljax.data.spec import DataSpec, packed_words
from ssljax.data.splits import Split, parse_split

COLUMNS = ("image", "label", "text")
_FORM = "declared:rows=1281167,image=224x224x3,label=1000 or declared:tokens=10B,text=50257"
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Ids of special tokens; shapes do not depend on them.
_ROLES = ("pad", "mask", "cls", "sep", "bos", "eos", "unk")


class Declared:
    """`declared:KEY=VALUE,...`.

    Keys: `rows` (number of rows), `image` (height x width x channels), `label` (number of classes), `text` (number of
    token ids, special tokens included), `tokens` (number of tokens of all texts). Numbers may end with k, M, B or T.

    Attributes:
        image: [H, W, C]; None without images.
        label, text: number of classes and of token ids; None without the column.
        rows, tokens: number of rows and of tokens; None: not given.

    Raises:
        UserError: an unknown key, or a value of another form.
    """

    def __init__(self, location: str):
        self.location = location
        given: dict[str, str] = {}
        for item in location.split(","):
            key, _, value = (part.strip() for part in item.partition("="))
            if key not in ("rows", "tokens", *COLUMNS):
                raise UserError(
                    f"data.source: unknown key {key!r} of declared data{nearest(key, ('rows', 'tokens', *COLUMNS))}; "
                    f"write {_FORM}"
                )
            given[key] = value
        self.rows, self.tokens, self.label, self.text = (
            _count(key, given[key]) if key in given else None for key in ("rows", "tokens", "label", "text")
        )
        self.image = _shape(given["image"]) if "image" in given else None
        self.columns = tuple(key for key in COLUMNS if key in given)
        if not self.columns:
            raise UserError(f"data.source: declared data has no column of {', '.join(COLUMNS)}; write {_FORM}")
        if self.text is not None and self.text <= len(_ROLES):
            raise UserError(f"data.source: text={self.text} declares {self.text} token ids, must be > {len(_ROLES)}")

    def fingerprint(self, split: Split) -> Any:
        return ["declared", self.location]

    def table(self, split: Split) -> Table:
        """Returns the names of the columns; reading one raises UserError."""

        def get(name: str) -> Column:
            refuse()

        return Table(self.columns, get)


def refuse() -> NoReturn:
    """Raises UserError: declared data cannot be read."""
    raise UserError("data.source: declared data has shapes only; set data.source=... to train")


def _count(key: str, text: str) -> int:
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)([kMBT]?)", text.replace("_", ""))
    number = Fraction(match[1]) * _FACTORS[match[2]] if match else Fraction(0)
    if number < 1 or number.denominator != 1:
        raise UserError(f"data.source: {key}={text} of declared data must be a number such as 1281167, 400M or 10B")
    return int(number)


def _shape(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})x([134])", text)
    if match is None or "0" in match.groups():
        raise UserError(f"data.source: image={text} of declared data must be HEIGHTxWIDTHxCHANNELS, such as 224x224x3")
    return int(match[1]), int(match[2]), int(match[3])


def is_declared(config: DataConfig) -> bool:
    """Returns True if the data are declared.

    Raises:
        UserError: some sources are declared and others are not.
    """
    declared = [_scheme(source.source) == "declared" for source in (*config.sources, *config.streams.values())]
    if any(declared) and not all(declared):
        raise UserError("data.source: some of the sources are declared and others are not; declare all or none")
    return any(declared)


def _scheme(uri: str) -> str:
    return uri.partition(":")[0]


@dataclass(frozen=True)
class _Part:
    """The examples of one source: their elements, their number, and that of the tokens of the declared texts."""

    source: Declared
    elements: dict[str, dict[str, Any]]
    size: int
    tokens: int

    @classmethod
    def of(cls, source: SourceConfig, config: DataConfig, limit: int | None = None) -> "_Part":
        declared: Any = open_source(source.source)
        if not isinstance(declared, Declared):
            raise UserError(f"data.source: {source.source!r} joins declared data with other data, must not")
        keys = selected_keys(source)
        if source.where or any(key != column or key not in declared.columns for key, column in keys.items()):
            raise UserError(
                f"data.keys: declared data has the columns {', '.join(declared.columns)} under these names, and no "
                f"values that data.where could filter"
            )
        elements: dict[str, dict[str, Any]] = {}
        for key in keys:
            elements |= _ELEMENTS[key](declared, config)
        size, tokens = _size(declared, source, keys, config)
        kept = size if limit is None else min(size, limit)
        return cls(declared, elements, kept, tokens * kept // size)


def _image(declared: Declared, config: DataConfig) -> dict[str, dict[str, Any]]:
    assert declared.image is not None
    height, width, channels = declared.image
    side = config.image_size
    image = {"shape": [side or height, side or width, channels], "dtype": "uint8"}
    squeezed = {"aspect": {"shape": [], "dtype": "float32"}} if config.image_fit == "squeeze" else {}
    return {"image": image, **squeezed}


def _label(declared: Declared, config: DataConfig) -> dict[str, dict[str, Any]]:
    return {"label": {"shape": [], "dtype": "int32"}}


def _text(declared: Declared, config: DataConfig) -> dict[str, dict[str, Any]]:
    if config.seq_len is None:
        raise UserError("data.seq_len: missing; text needs a number of tokens (or name data.keys without text)")
    keys = ("tokens",) if config.mode == "windows" else KEYS
    return {key: {"shape": [config.seq_len], "dtype": "int32"} for key in keys}


_ELEMENTS: dict[str, Callable[[Declared, DataConfig], dict[str, dict[str, Any]]]] = {
    "image": _image,
    "label": _label,
    "text": _text,
}


def _size(declared: Declared, source: SourceConfig, keys: dict[str, str], config: DataConfig) -> tuple[int, int]:
    """Returns the number of examples of a source, and of their tokens."""
    cut = "text" in keys and config.mode != "documents"
    if cut and len(keys) > 1:
        raise UserError(f"data.mode: got {config.mode!r}, which cuts text without regard to rows; use 'documents'")
    number, name = (declared.tokens, "tokens") if cut else (declared.rows, "rows")
    if number is None:
        raise UserError(f"data.source: declared data must give {name}, such as {name}=1M (in mode {config.mode!r})")
    number = len(range(number)[parse_split(source.split).bounds(number)])
    size, length = number, config.seq_len or 0
    if cut and config.mode == "packed":
        size = -(-number // length)
    elif cut:
        stride = length - config.overlap
        size = max(0, number - length + stride) // stride
    if size < 1:
        raise UserError(f"data.source: {source.source} [{source.split}] has no example")
    if "text" not in keys:
        return size, 0
    return size, number if config.mode == "packed" else size * length


def declared_spec(config: DataConfig) -> DataSpec:
    """Describes the batches of declared data, as `ssljax.data.describe` does for data that are here.

    Raises:
        UserError: a column or a number is missing, or sources of a mixture have different elements.
    """
    parts = [_Part.of(source, config, config.max_examples) for source in config.sources]
    first = parts[0]
    if any(part.elements != first.elements for part in parts):
        raise UserError("data.mixture: sources must have equal keys, shapes and dtypes")
    classes = max((part.source.label or 0 for part in parts if "label" in part.elements), default=0)
    if config.num_classes is not None and config.num_classes < classes:
        raise UserError(f"data.num_classes: got {config.num_classes}, must be at least the {classes} declared classes")
    streams = {name: (_Part.of(part.rows, config), part.ratio) for name, part in config.streams.items()}
    every = [*parts, *(part for part, _ in streams.values())]
    texts = {part.source.text or 0 for part in every if "tokens" in part.elements}
    if len(texts) > 1:
        raise UserError(f"data.source: texts are declared with vocabularies of {sorted(texts)} ids; give one")
    number = {"id": {"shape": [], "dtype": "int64"}}
    return DataSpec(
        elements=number | first.elements,
        size=sum(part.size for part in parts),
        num_classes=(config.num_classes or classes) if classes else None,
        vocab_size=max(texts) if texts else None,
        special_ids={role: i for i, role in enumerate(_ROLES)} if texts else {},
        word_starts=packed_words(np.ones(max(texts), bool)) if texts else None,
        sentence_ends=(len(_ROLES),) if texts else (),
        max_len=config.seq_len if texts else None,
        tokens=sum(part.tokens for part in parts) if texts else None,
        streams={
            name: {"elements": number | part.elements, "size": part.size, "ratio": ratio}
            for name, (part, ratio) in streams.items()
        },
        content={
            source_title(source): source_content(source) for source in (*config.sources, *config.streams.values())
        },
    )


class AbsentBatches:
    """The batches of declared data: they have a number of rows, and reading one raises UserError."""

    def __init__(self, rows: int):
        self.rows = rows

    def batch(self, step: int, part: Callable[[int], np.ndarray]) -> dict[str, np.ndarray]:
        refuse()

    def ids(self, step: int) -> np.ndarray:
        refuse()
