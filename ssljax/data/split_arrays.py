"""Whole splits as arrays, for evaluations: `load_split`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.config import DataConfig, SourceConfig
from ssljax.data.examples import open_examples, tokenizer_of
from ssljax.data.notes import say_once
from ssljax.data.order import subset
from ssljax.data.selection import source_content


class SplitArrays(dict[str, np.ndarray]):
    """The arrays [N, ...] of a split by key, with attributes for evaluations.

    Attributes:
        classes: names of the classes that the labels number; None if the source has no names.
        tokens: number of tokens, without padding; None without text.
        bytes: number of UTF-8 bytes of the text of these tokens; None without text. A model that scores `count` tokens
            with log-likelihood -L nats needs L / ln 2 / (bytes * count / tokens) bits per byte.
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
    content: Mapping[str, str] | None = None,
) -> SplitArrays:
    """Loads a whole split in fixed order, prepared as for training (tokenizer, image size, sequence length).

    Args:
        config: the `data` group of the run; its `max_examples` applies to training only.
        split: name or slice.
        source: URI of another source; None: the source of the config.
        keys, where: as in the config; None: the config, if the source is the same, else empty.
        max_examples: a random subset of this many rows, fixed by `config.seed` (0 if None) and equal in all runs;
            None: all rows.
        content: digests of the training data of the run (`DataSpec.content`). A line of the log says so if the content
            of a split of them has changed since.

    Raises:
        UserError: as `describe`, or the config has a mixture and `source` is None.
    """
    if source is None and config.source is None:
        raise UserError("data.source: missing; data.mixture has several sources; name one to evaluate on")
    same = source in (None, config.source)
    chosen = SourceConfig(
        source=source or config.source or "",
        split=split,
        keys=dict(keys) if keys is not None else (config.keys if same else {}),
        where=dict(where) if where is not None else (config.where if same else {}),
    )
    tokenizer = tokenizer_of((chosen,), config)
    opened = open_examples(chosen, config, tokenizer)
    if content:
        title, digest = source_content(chosen)
        if content.get(title, digest) != digest:
            say_once(f"data.source: the content of {title} is not that on which the run was trained")
    rows = subset(opened.examples.size, max_examples, config.seed or 0)
    out = SplitArrays(id=opened.examples.ids(rows), **opened.examples.take(rows))
    out.classes = opened.classes
    if tokenizer is not None and opened.texts is not None:
        out.tokens = int(opened.texts.lengths(rows).sum())
        if tokenizer.byte_lengths is not None:
            out.bytes = float(tokenizer.byte_lengths[out["tokens"]].sum())
        else:  # WordPiece: bytes of all texts, in proportion to the tokens
            out.bytes = opened.texts.cache.bytes * out.tokens / max(len(opened.texts.cache.tokens), 1)
    return out
