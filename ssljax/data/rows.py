"""Texts as rows of one width: [cls] text [sep], or bos text eos, where the tokenizer has them; cut, and padded."""

import numpy as np

KEYS = ("tokens", "segment_ids", "positions")


def first_token(special_ids: dict[str, int]) -> int | None:
    """The token before a text."""
    return special_ids.get("cls", special_ids.get("bos"))


def last_token(special_ids: dict[str, int]) -> int | None:
    """The token after a text."""
    return special_ids.get("eos", special_ids.get("sep"))


def added(special_ids: dict[str, int]) -> int:
    """How many tokens stand around a text."""
    return (first_token(special_ids) is not None) + (last_token(special_ids) is not None)


def fill_rows(
    tokens: np.ndarray, starts: np.ndarray, sizes: np.ndarray, width: int, special_ids: dict[str, int]
) -> dict[str, np.ndarray]:
    """Rows of texts that lie in one long array.

    Args:
        tokens: integers, flat.
        starts, sizes: int64 [N]; text i is tokens[starts[i] : starts[i] + sizes[i]].
        width: T; at least `added(special_ids)`.
        special_ids: of the tokenizer.

    Returns:
        `tokens`, `segment_ids` (1; 0 is padding) and `positions`, int32 [N, T] each.
    """
    first, last = first_token(special_ids), last_token(special_ids)
    columns, offset = np.arange(width), int(first is not None)
    kept = np.minimum(sizes, width - added(special_ids))[:, None]
    text = (columns >= offset) & (columns < offset + kept)
    out = np.full(text.shape, special_ids.get("pad", 0), np.int32)
    out[text] = tokens[(starts[:, None] + columns - offset)[text]]
    if first is not None:
        out[:, 0] = first
    if last is not None:
        out[columns == offset + kept] = last
    here = columns < kept + added(special_ids)
    return {"tokens": out, "segment_ids": here.astype(np.int32), "positions": (here * columns).astype(np.int32)}
