"""Texts as rows of fixed width: [CLS] text [SEP] or <bos> text <eos>, truncated and padded."""

from typing import NamedTuple

import numpy as np

KEYS = ("tokens", "segment_ids", "positions")


class Affixes(NamedTuple):
    """Ids of the special tokens before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def added(self) -> int:
        """The number of tokens that are added to a text."""
        return len(self.before) + len(self.after)


def first_token(special_ids: dict[str, int]) -> int | None:
    """Returns the id of the token before a text; None if the tokenizer has none."""
    return special_ids.get("cls", special_ids.get("bos"))


def last_token(special_ids: dict[str, int]) -> int | None:
    """Returns the id of the token after a text; None if the tokenizer has none."""
    return special_ids.get("eos", special_ids.get("sep"))


def pad_token(special_ids: dict[str, int]) -> int:
    """Returns the id of padding: the pad token, else the token after a text (as GPT-2 and CLIP are padded), else 0."""
    end = last_token(special_ids)
    return special_ids.get("pad", 0 if end is None else end)


def affixes_of(special_ids: dict[str, int]) -> Affixes:
    """Returns the first and the last token of a text, as far as the tokenizer has them."""
    first, last = first_token(special_ids), last_token(special_ids)
    return Affixes(() if first is None else (first,), () if last is None else (last,))


def fill_rows(
    tokens: np.ndarray, starts: np.ndarray, sizes: np.ndarray, width: int, affixes: Affixes, pad: int
) -> dict[str, np.ndarray]:
    """Makes rows of texts that lie in one long array of tokens.

    Args:
        tokens: integers, flat.
        starts, sizes: int64 [N]; text i is tokens[starts[i] : starts[i] + sizes[i]].
        width: row length T, at least `affixes.added`.
        affixes: tokens before and after each text; they stay when a text is truncated.
        pad: id of padding.

    Returns:
        `tokens`, `segment_ids` (1; 0 = padding) and `positions`, int32 [N, T] each.
    """
    columns, offset = np.arange(width), len(affixes.before)
    kept = np.minimum(sizes, width - affixes.added)[:, None]
    text = (columns >= offset) & (columns < offset + kept)
    out = np.full(text.shape, pad, np.int32)
    out[text] = tokens[(starts[:, None] + columns - offset)[text]]
    for i, token in enumerate(affixes.before):
        out[:, i] = token
    for i, token in enumerate(affixes.after):
        out[columns == offset + kept + i] = token
    valid = columns < kept + affixes.added
    return {"tokens": out, "segment_ids": valid.astype(np.int32), "positions": (valid * columns).astype(np.int32)}
