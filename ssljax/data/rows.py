"""Texts as rows of fixed width: [cls] text [sep] or bos text eos, truncated and padded."""

import numpy as np

KEYS = ("tokens", "segment_ids", "positions")


def first_token(special_ids: dict[str, int]) -> int | None:
    """Returns the id of the token before a text; None if the tokenizer has none."""
    return special_ids.get("cls", special_ids.get("bos"))


def last_token(special_ids: dict[str, int]) -> int | None:
    """Returns the id of the token after a text; None if the tokenizer has none."""
    return special_ids.get("eos", special_ids.get("sep"))


def num_added(special_ids: dict[str, int]) -> int:
    """Returns the number of special tokens that are added to a text: 0, 1 or 2."""
    return (first_token(special_ids) is not None) + (last_token(special_ids) is not None)


def fill_rows(
    tokens: np.ndarray, starts: np.ndarray, sizes: np.ndarray, width: int, special_ids: dict[str, int]
) -> dict[str, np.ndarray]:
    """Makes rows of texts that lie in one long array of tokens.

    Args:
        tokens: integers, flat.
        starts, sizes: int64 [N]; text i is tokens[starts[i] : starts[i] + sizes[i]].
        width: row length T, at least `num_added(special_ids)`.
        special_ids: ids of the special tokens of the tokenizer.

    Returns:
        `tokens`, `segment_ids` (1; 0 = padding) and `positions`, int32 [N, T] each.
    """
    first, last = first_token(special_ids), last_token(special_ids)
    columns, offset = np.arange(width), int(first is not None)
    kept = np.minimum(sizes, width - num_added(special_ids))[:, None]
    text = (columns >= offset) & (columns < offset + kept)
    out = np.full(text.shape, special_ids.get("pad", 0), np.int32)
    out[text] = tokens[(starts[:, None] + columns - offset)[text]]
    if first is not None:
        out[:, 0] = first
    if last is not None:
        out[columns == offset + kept] = last
    valid = columns < kept + num_added(special_ids)
    return {"tokens": out, "segment_ids": valid.astype(np.int32), "positions": (valid * columns).astype(np.int32)}
