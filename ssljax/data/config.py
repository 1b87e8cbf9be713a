"""The `data` group of a config: where examples come from, and in which form the batches hold them."""

import os
import pathlib
from dataclasses import dataclass
from typing import Any, Literal

from ssljax.base.schema import setting


@dataclass(frozen=True)
class Part:
    """Rows of one source: a URI, a split, the columns to read, a filter.

    Attributes:
        source: URI such as `npz:$SSLJAX_DATA/mnist/mnist.npz`; environment variables are expanded, `{split}` is
            replaced by the name of the split, `a+b` joins two sources row by row.
        split: name of a split, or a slice of one: `train[:1000]`, `train[10%:]`, `train[-20%:]`.
        keys: name in the batch -> column of the source (`bytes@offsets` for encoded images in one long array), or
            split -> such a mapping where the splits differ. Empty: the columns called image, label, text, audio.
        where: column -> value (or list of values) that a row must have to be used.
    """

    source: str
    split: str = "train"
    keys: dict[str, Any] = setting({})
    where: dict[str, Any] = setting({})

    def validate(self) -> None:
        groups = [isinstance(v, dict) for v in self.keys.values()]
        if any(groups) and not all(groups):
            raise ValueError("keys: mixes columns and splits; give name -> column, or split -> {name -> column}")


@dataclass(frozen=True)
class MixturePart(Part):
    """One source of a mixture."""

    weight: float = setting(1.0, gt=0)  # share of the examples, relative to the other weights


@dataclass(frozen=True)
class StreamPart(Part):
    """A further stream beside the main one: `ratio` x batch size rows a batch, under the stream's name."""

    ratio: float = setting(1.0, gt=0)  # rows a batch / batch size; the rows must come out whole


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens.

    Attributes:
        name: `bytes` (256 bytes and the specials), `bpe` (byte-level byte-pair encoding), `wordpiece`, or `file`.
        vocab_size: specials included; `bpe` and `wordpiece` only.
        lowercase: lower-case the text first; `bpe` and `wordpiece` only.
        path: a tokenizer.json of the `tokenizers` library, or a SentencePiece model (`*.model`); `file` only.
    """

    name: Literal["bytes", "bpe", "wordpiece", "file"] = "bytes"
    vocab_size: int = setting(8192, ge=261)
    lowercase: bool = False
    path: str | None = None

    def validate(self) -> None:
        if (self.name == "file") != (self.path is not None):
            raise ValueError(f"path: got {self.path!r}; a path belongs to name 'file', and only to it")


@dataclass(frozen=True)
class DataConfig:
    """Examples, their order and their form (fields of one source: see `Part`).

    Attributes:
        source, split, keys, where: see `Part`. Left out when `mixture` is given.
        seed: decides the order; None: the seed of the run.
        image_size: encoded or array images are resized so that the shorter side has this many pixels, and cut to the
            central square; None: as they are (then all must have one shape).
        num_classes: labels must be below it; None: what the source says, or the largest training label + 1.
        max_examples: train on a random subset (fixed by the seed) of this many examples, of each source of a mixture.
        tokenizer: see `TokenizerConfig`; trained on the training split only.
        seq_len: tokens in an example of text.
        mode: `windows`: example i is tokens [i (T - overlap), i (T - overlap) + T) of the whole corpus;
            `packed`: documents packed into rows, kept apart by `segment_ids`; `documents`: one document a row.
        overlap: tokens that neighbouring windows share.
        mixture: several sources, drawn from in fixed proportions.
        streams: further streams, nested in the batch under their names.
        prefetch: batches made ahead of the step.
        cache_dir: for token caches and decoded images; None: $SSLJAX_CACHE or ~/.cache/ssljax.
    """

    source: str | None = None
    split: str = "train"
    keys: dict[str, Any] = setting({})
    where: dict[str, Any] = setting({})
    seed: int | None = None
    image_size: int | None = setting(None, gt=0)
    num_classes: int | None = setting(None, gt=0)
    max_examples: int | None = setting(None, gt=0)
    tokenizer: TokenizerConfig = TokenizerConfig()
    seq_len: int | None = setting(None, gt=1)
    mode: Literal["windows", "packed", "documents"] = "windows"
    overlap: int = setting(0, ge=0)
    mixture: tuple[MixturePart, ...] = ()
    streams: dict[str, StreamPart] = setting({})
    prefetch: int = setting(2, gt=0, free=True)
    cache_dir: str | None = setting(None, free=True)

    def validate(self) -> None:
        if (self.source is None) == (not self.mixture):
            raise ValueError("source: give either a source or a mixture (`ssljax list data` names the kinds of source)")
        if self.source is not None:
            self.parts[0].validate()
        if self.overlap and self.mode != "windows":
            raise ValueError(f"overlap: got {self.overlap}, but only mode 'windows' has overlap")
        if self.seq_len is not None and self.overlap >= self.seq_len:
            raise ValueError(f"overlap: got {self.overlap}, must be < seq_len ({self.seq_len})")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The sources that are trained on: one, or those of the mixture."""
        return self.mixture or (Part(self.source or "", self.split, self.keys, self.where),)


def cache_root(config: DataConfig) -> pathlib.Path:
    """The folder of token caches and decoded images."""
    folder = config.cache_dir or os.environ.get("SSLJAX_CACHE") or "~/.cache/ssljax"
    return pathlib.Path(os.path.expandvars(folder)).expanduser()
