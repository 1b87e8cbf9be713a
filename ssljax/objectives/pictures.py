"""Parts of `Objective.pictures`, which shows what an objective does on a few held-out examples."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ssljax import parallel
from ssljax.base.exhibits import Exhibit, Grid, Tile

Decode = Callable[[Iterable[int]], str]
MASK = "▁▁▁"  # a hidden token in a text
UNFINISHED = "\ufffd"  # the text of a token that is a part of a letter
TEXTS = 4  # number of texts
SHOWN = 96  # tokens of a text with masks


@dataclasses.dataclass(frozen=True)
class Showing:
    """Inputs of `Objective.pictures` beside the model and the batch.

    Attributes:
        key: random key, the same at each call.
        rows: number of examples to show; the batch may have more.
        decode: token ids -> text, without special tokens; None: the data have no tokenizer.
        generate: (prompts, number of new tokens, first tokens of a decoder) -> new token ids of each prompt.
    """

    key: jax.Array
    rows: int = 8
    decode: Decode | None = None
    generate: Callable[[Sequence[np.ndarray], int, Sequence[int]], list[np.ndarray]] | None = None


def of_views(
    originals: Any, inputs: Mapping[str, Any], rows: int, titles: Sequence[str] | None = None
) -> dict[str, Exhibit]:
    """Returns the picture "views": original images beside their augmented views; {} if no view differs.

    Args:
        originals: [B, H, W, C] in [0, 1].
        inputs: result of `Objective.views`: "image" [B, h, w, C] or [B, V, h, w, C]; "global" and "local"
            [B, V, h, w, C].
        rows: number of examples.
        titles: titles of the views; by default their kind and number.
    """
    originals, columns, views = parallel.fetch(originals)[:rows], ["original"], []
    for name, title in (("image", "view"), ("global", "large crop"), ("local", "small crop")):
        if name in inputs:
            made = np.clip(parallel.fetch(inputs[name])[:rows], 0, 1)
            made = made[:, None] if made.ndim == 4 else made
            columns += [title if made.shape[1] == 1 else f"{title} {i + 1}" for i in range(made.shape[1])]
            views += list(made.swapaxes(0, 1))
    columns = columns if titles is None else ["original", *titles]
    if all(view.shape == originals.shape and np.array_equal(view, originals) for view in views):
        return {}
    tiles = [[Tile(image) for image in row] for row in zip(originals, *views)]
    caption = "Held-out images (the central square, as evaluations see them) and random views, as in training."
    return {"views": Grid("Views", caption, tiles, columns)}


def in_rows(tiles: Sequence[Tile], columns: int = 4) -> list[Sequence[Tile]]:
    """Cuts tiles into rows."""
    return [tiles[i : i + columns] for i in range(0, len(tiles), columns)]


def pieces(decode: Decode, ids: Sequence[int], replaced: Mapping[int, Any]) -> list[str]:
    """Returns the text of each token, in which some tokens are replaced, with the spaces before it.

    The text of token i is what it adds to the text of the tokens 0 to i - 1, so that tokenizers that join tokens, such
    as WordPiece, write words as in a whole text. A letter of several tokens is the text of its last token.

    Args:
        decode: see `Showing`.
        ids: the tokens.
        replaced: {position: token id that stands there instead}.
    """
    out, before = [], ""
    for i in range(len(ids)):
        whole = decode(ids[: i + 1])
        text = decode([*ids[:i], replaced[i]]) if i in replaced else whole
        partial = text.endswith(UNFINISHED) and i + 1 < len(ids) and i not in replaced
        new = text[len(before) :] if text.startswith(before) else decode([replaced.get(i, ids[i])])
        out.append("" if partial else new)
        before = before if partial else whole
    return out


def marked(decode: Decode, ids: Sequence[int], places: Iterable[int], guesses: Mapping[int, int] | None) -> str:
    """Returns the text of tokens with brackets around those at some places; guesses stand in place of the tokens.

    Args:
        decode: see `Showing`.
        ids: the tokens.
        places: positions with brackets.
        guesses: {position: token id}; None: the positions are hidden.
    """
    found = set(places)
    words = pieces(decode, ids, guesses or {})
    for i in found:
        word = words[i].lstrip() or words[i]  # a token may be a space
        space = words[i][: len(words[i]) - len(word)]
        words[i] = space + (MASK if guesses is None else f"[{word}]")
    return "".join(words)


def first_text(batch: Mapping[str, Any], row: int) -> np.ndarray:
    """Returns the tokens of the first text of a row, without those of the next texts and without padding."""
    tokens = parallel.fetch(batch["tokens"])[row]
    if "segment_ids" not in batch:
        return tokens
    segments = parallel.fetch(batch["segment_ids"])[row]
    return tokens[(segments == segments[0]) & (segments > 0)]
