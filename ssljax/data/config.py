"""The `data` group of a config: the sources of examples and the form of the batches."""

import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ssljax.base.errors import UserError, shown
from ssljax.base.files import local_folder
from ssljax.base.plain import plain
from ssljax.base.schema import setting
from ssljax.data.cache import default_root
from ssljax.data.sources import expand

_SOURCE = (
    "URI of the source, such as `npz:$SSLJAX_DATA/mnist/mnist.npz`; environment variables are expanded, `{split}` is "
    "replaced by the name of the split, `a+b` joins two sources row by row"
)
_SPLIT = "name of a split, or a slice of one: `train[:1000]`, `train[10%:]`, `train[-20%:]`"
_KEYS = (
    "name in the batch -> column of the source (`A@offsets`: encoded images, or samples, in one array), or split -> "
    "such a mapping; empty: the columns called `image`, `label`, `text`, `audio` or `graph`"
)
_WHERE = "filter: column -> value, or list of values, that a row must have; a label may be the name of its class"


def plain_filter(where: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a filter in JSON values: sets (sorted), tuples, ranges and NumPy arrays become lists.

    Raises:
        UserError: a value is neither a number, a text, true, false nor None, nor a collection of these.
    """
    out = {}
    for column, value in where.items():
        value = plain(value, f"data.where.{column}")
        values = list(value) if isinstance(value, list | tuple) else [value]
        if any(isinstance(v, list | tuple | dict) for v in values):
            raise UserError(
                f"data.where.{column}: got {shown(value)}, must be a number, a text, true, false or None, or a list of "
                f"these"
            )
        out[str(column)] = values if isinstance(value, list | tuple) else value
    return out


@dataclass(frozen=True)
class SourceConfig:
    """Rows of one source: a URI, a split, columns and a filter."""

    source: str = setting(doc=_SOURCE)
    split: str = setting("train", doc=_SPLIT)
    keys: dict[str, Any] = setting({}, doc=_KEYS)
    where: dict[str, Any] = setting({}, doc=_WHERE)

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", plain_filter(self.where))

    def validate(self) -> None:
        groups = [isinstance(v, dict) for v in self.keys.values()]
        if any(groups) and not all(groups):
            raise ValueError("keys: mixes columns and splits; give name -> column, or split -> {name -> column}")


@dataclass(frozen=True)
class MixturePart(SourceConfig):
    """One source of a mixture."""

    weight: float = setting(1.0, gt=0, doc="share of the examples, relative to the sum of all weights")


@dataclass(frozen=True)
class StreamPart(SourceConfig):
    """A further stream of rows, nested in the batch under the name of the stream."""

    source: str | None = setting(
        None, doc=f"{_SOURCE}; None: `data.source`, with its keys and filter unless there are others"
    )  # type: ignore[assignment]
    ratio: float = setting(
        1.0, gt=0, doc="rows of the stream in a batch / `batch_size`; the number of rows must be whole"
    )

    @property
    def rows(self) -> SourceConfig:
        """The source of the stream."""
        return SourceConfig(self.source or "", self.split, self.keys, self.where)


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer of texts."""

    name: Literal["bytes", "bpe", "wordpiece", "file"] = setting(
        "bytes",
        doc="kind of tokenizer; `bytes`: 256 bytes and special tokens; `bpe` (byte-level byte-pair encoding) and "
        "`wordpiece`: trained on the training split; `file`: read from `path`",
    )
    vocab_size: int = setting(
        8192, ge=261, le=2**24, doc="number of tokens, special tokens included; for `bpe` and `wordpiece` only"
    )
    lowercase: bool = setting(False, doc="converts texts to lower case first; for `bpe` and `wordpiece` only")
    path: str | None = setting(
        None,
        doc="for `file` only: a tokenizer.json, a SentencePiece model (`*.model`), vocab.txt, or vocab.json with "
        "merges.txt; or a folder with one of them",
    )

    def validate(self) -> None:
        if (self.name == "file") != (self.path is not None):
            raise ValueError(f"path: got {self.path!r}, must be given for name 'file' and for no other name")


@dataclass(frozen=True)
class DataConfig:
    """The training data, its order, and the form of a batch."""

    source: str | None = setting(None, doc=f"{_SOURCE}; None: `mixture` is given")
    split: str = setting("train", doc=_SPLIT)
    keys: dict[str, Any] = setting({}, doc=_KEYS)
    where: dict[str, Any] = setting({}, doc=_WHERE)
    seed: int | None = setting(None, doc="seed of the order; None: the seed of the run")
    image_size: int | None = setting(
        None,
        gt=0,
        lt=2**16,
        doc="side in pixels to which an image is resized, as `image_fit` states; None: no resizing, and all images "
        "must have one shape",
    )
    image_fit: Literal["center", "squeeze"] = setting(
        "center",
        doc="part of an image that is resized to `image_size`; `center`: its central square; `squeeze`: all of it, "
        "squeezed into a square. Crops of views then have the proportions of the image, and evaluations take the "
        "central square",
    )
    images: Literal["auto", "decoded", "encoded"] = setting(
        "auto",
        free=True,
        doc="form in which images of files are kept; `decoded`: decoded once, into a file in the folder of caches; "
        "`encoded`: decoded at each use; `auto`: decoded if they take at most 4 GiB so. Batches are the same",
    )
    damaged_images: int = setting(
        0,
        ge=0,
        free=True,
        doc="largest number of images that cannot be decoded; the row of such an image is replaced by the next row in "
        "training, left out in evaluations, and named in the log. One more stops the run",
    )
    max_nodes: int | None = setting(
        None,
        gt=0,
        lt=2**16,
        doc="nodes to which graphs are padded, and the most that a graph may have; None: those of the largest graph of "
        "the source, at most 256",
    )
    sample_rate: int | None = setting(
        None,
        gt=0,
        lt=2**20,
        doc="samples per second of audio; files of another rate are resampled to it, and arrays of samples must have "
        "it; None: no audio",
    )
    clip_seconds: float | None = setting(
        None, gt=0, doc="length in seconds after which audio is cut, and to which it is padded; None: no audio"
    )
    num_classes: int | None = setting(
        None,
        gt=0,
        doc="number of classes; labels must be below it; None: as the source declares, else the largest training label "
        "+ 1",
    )
    max_examples: int | None = setting(
        None,
        gt=0,
        doc="size of a random subset of the examples, fixed by the seed, that is trained on (per source of a mixture); "
        "None: all examples",
    )
    tokenizer: TokenizerConfig = setting(TokenizerConfig(), doc="tokenizer, trained on the training split only")
    seq_len: int | None = setting(None, gt=1, doc="tokens in an example of text; None: no text")
    mode: Literal["windows", "packed", "documents"] = setting(
        "windows",
        doc="examples of text: `windows`: example i is tokens [i (T - overlap), i (T - overlap) + T) of all documents "
        "end to end, T = `seq_len`; `packed`: documents packed into rows, separated by `segment_ids`; `documents`: one "
        "document in a row",
    )
    overlap: int = setting(0, ge=0, doc="tokens that consecutive windows share; for mode `windows` only")
    mixture: tuple[MixturePart, ...] = setting((), doc="several sources, mixed in fixed proportions")
    streams: dict[str, StreamPart] = setting({}, doc="further streams of rows, by their name in the batch")
    prefetch: int = setting(2, gt=0, free=True, doc="number of batches that are prepared in advance")
    cache_dir: str | None = setting(
        None,
        free=True,
        doc="folder of token caches and decoded images; None: $SSLJAX_CACHE, else ~/.cache/ssljax",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", plain_filter(self.where))
        of_main = {
            name: dataclasses.replace(s, source=self.source, keys=s.keys or self.keys, where=s.where or self.where)
            for name, s in self.streams.items()
            if s.source is None
        }
        object.__setattr__(self, "streams", {**self.streams, **of_main})

    def validate(self) -> None:
        if (self.source is None) == (not self.mixture):
            raise ValueError("source: give either a source or a mixture (`ssljax list data` names the kinds of source)")
        if missing := [name for name, stream in self.streams.items() if stream.source is None]:
            raise ValueError(f"streams.{missing[0]}.source: must be given with a mixture")
        if self.source is not None:
            self.sources[0].validate()
        if self.image_fit == "squeeze" and self.image_size is None:
            raise ValueError("image_fit: got 'squeeze', needs image_size, the side of the square")
        if self.overlap and self.mode != "windows":
            raise ValueError(f"overlap: got {self.overlap}, must be 0 in mode {self.mode!r} (only 'windows' overlap)")
        if self.seq_len is not None and self.overlap >= self.seq_len:
            raise ValueError(f"overlap: got {self.overlap}, must be < seq_len ({self.seq_len})")

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The training sources: one source, or all sources of the mixture."""
        return self.mixture or (SourceConfig(self.source or "", self.split, self.keys, self.where),)


def cache_root(config: DataConfig) -> pathlib.Path:
    """Returns the folder of token caches and decoded images.

    Raises:
        UserError: an address such as gs://bucket/cache, or an environment variable that is not set.
    """
    return (
        default_root()
        if config.cache_dir is None
        else local_folder(expand(config.cache_dir, "data.cache_dir"), "data.cache_dir")
    )
