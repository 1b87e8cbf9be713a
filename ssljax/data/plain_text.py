"""Tokens of ordinary text: special tokens that a text spells are text, and long texts are encoded in pieces."""

import functools
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.data.sentence_piece import SentencePiece

PIECE = 1 << 16  # characters of a piece of a long text
_CONTEXT = 200  # characters on both sides of a cut that are encoded with and without the cut
_TRIES = 16  # places that are tried for one cut
_LATER, _NOWHERE = (0, True), (-1, True)  # results of the search for a place: more text decides; there is none
BETWEEN_LINES = re.compile(r"(?<=\w)\n(?=\w)")


def check_text(text: str, location: str) -> None:
    """Raises UserError if a text has half of a surrogate pair, which UTF-8 cannot represent.

    Args:
        text: the text.
        location: its location, for the message.
    """
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{location}: character {error.start} is {text[error.start]!a}, half of a surrogate pair; "
            f"a text must be valid Unicode"
        ) from error


class TextEncoder:
    """Encodes texts without special tokens.

    A text that spells a special token ("<eos>", "[MASK]") is encoded as any other text. The tokens of a text do not
    depend on its length: it is cut only where its tokens are known to be the same with and without the cut.

    Args:
        model: a tokenizer of the `tokenizers` library, or a SentencePiece model.
        specials: texts of the special tokens that the file of the model does not mark as special.
        kept: texts of special tokens that are recognised in a text.
    """

    def __init__(self, model: Any, specials: Collection[str] = (), kept: Collection[str] = ()):
        self._model, self._specials, self._kept = model, frozenset(specials), frozenset(kept)

    @functools.cached_property
    def _first(self) -> Any:
        """The model of the first piece of a text."""
        return _without_specials(json.loads(self._model.to_str()), self._specials, self._kept)

    @functools.cached_property
    def _next(self) -> Any:
        """The model of the following pieces, which get no space in front."""
        content = json.loads(self._model.to_str())
        changed = _without_prefix(content)
        return self._first if changed == content else _without_specials(changed, self._specials, self._kept)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32.

        Raises:
            UserError: a text has half of a surrogate pair.
        """
        for number, text in enumerate(texts, 1):
            check_text(text, f"text {number}")
        if isinstance(self._model, SentencePiece):
            return [np.array(self._model.encode_text(text, self._kept), np.int32) for text in texts]
        # The library encodes a batch in threads, so the pieces of all texts are encoded together.
        pieces = [list(itertools.chain.from_iterable(self._pieces([text]))) for text in texts]
        encoded = iter(self._encode_pieces(list(itertools.chain.from_iterable(pieces))))
        return [np.concatenate([next(encoded) for _ in group]) for group in pieces]

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """Yields the ids of one text that comes in blocks, int32: joined, the ids of the whole text.

        Memory does not grow with the text, except for SentencePiece models and for texts that cannot be cut.

        Raises:
            UserError: half of a surrogate pair.
        """
        if isinstance(self._model, SentencePiece):
            yield from self.encode(["".join(blocks)])
            return
        for pieces in self._pieces(blocks):
            for number, (piece, _) in enumerate(pieces, 1):
                check_text(piece, f"piece {number}")
            yield from self._encode_pieces(pieces)

    def encoding(self, text: str) -> Any:
        """Returns the encoding of a text as the library gives it; not for SentencePiece models."""
        return self._first.encode(text, add_special_tokens=False)

    def _of(self, spaced: bool) -> Any:
        return self._first if spaced else self._next

    def _encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[np.ndarray]:
        """Returns the ids of each piece, int32; True with those that are encoded like the beginning of a text."""
        encoded = {
            spaced: iter(_encode(self._of(spaced), [text for text, own in pieces if own is spaced]))
            for spaced in {spaced for _, spaced in pieces}
        }
        return [next(encoded[spaced]) for _, spaced in pieces]

    def _pieces(self, blocks: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
        """Yields the pieces of a text that comes in blocks; True with those that are encoded like its beginning.

        A list of the pieces that are complete follows each block. Pieces do not depend on the blocks.
        """
        rest, spaced, place = "", True, _LATER
        for block in itertools.chain(blocks, [None]):
            rest += block or ""
            pieces, start = [], 0
            while place is not _NOWHERE and len(rest) - start > PIECE:
                place = self._cut(rest, start + PIECE, ended=block is None)
                if place in (_LATER, _NOWHERE):
                    break
                pieces.append((rest[start : place[0]], spaced))
                start, spaced = place
            rest = rest[start:]
            yield pieces
        yield [(rest, spaced)]

    def _cut(self, text: str, start: int, ended: bool) -> tuple[int, bool]:
        """Returns the next place of a cut that changes no token; True if a text may begin there.

        The place lies between two lines. The text around it has the same tokens with and without the cut. `_NOWHERE`:
        the tokenizer has no such place nearby, and the rest of the text is encoded in one piece.
        """
        tried = 0
        for match in itertools.islice(BETWEEN_LINES.finditer(text, start), _TRIES):
            at, tried = match.end(), tried + 1
            if not ended and at + _CONTEXT > len(text):
                return _LATER
            before, after = text[at - _CONTEXT : at], text[at : at + _CONTEXT]
            whole, left = _encode(self._first, [before + after, before])
            for spaced in (False, True):
                (right,) = _encode(self._of(spaced), [after])
                if np.array_equal(np.concatenate([left, right]), whole):
                    return at, spaced
        return _NOWHERE if ended or tried == _TRIES else _LATER


def _encode(model: Any, texts: list[str]) -> list[np.ndarray]:
    """Returns the ids of texts. Raises UserError if a part of one has no token, and there is none for unknown text."""
    try:
        return [np.array(e.ids, np.int32) for e in model.encode_batch_fast(texts, add_special_tokens=False)]
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"data.tokenizer: cannot encode a text ({error})") from error


def _without_specials(content: dict[str, Any], specials: frozenset[str], kept: frozenset[str]) -> Any:
    """Returns a model that produces no special token except those that are kept."""
    from tokenizers import Tokenizer

    specials = (specials | {token["content"] for token in content["added_tokens"] if token["special"]}) - kept
    model = _renamed(content["model"], specials)
    own = set(_vocabulary(content["model"]))
    # A token that is not in the vocabulary of the model stays, since the ids of added tokens are counted on from it.
    added = [
        {**token, "special": token["content"] in specials}
        for token in content["added_tokens"]
        if token["content"] not in specials & own
    ]
    changed = {"model": model, "added_tokens": added, "post_processor": None, "padding": None, "truncation": None}
    out = Tokenizer.from_str(json.dumps({**content, **changed}))
    out.encode_special_tokens = True
    return out


def _vocabulary(model: dict[str, Any]) -> Iterable[str]:
    vocabulary = model["vocab"]
    return vocabulary if isinstance(vocabulary, dict) else [text for text, _ in vocabulary]


def _renamed(model: dict[str, Any], specials: frozenset[str]) -> dict[str, Any]:
    """Returns the model of a tokenizer.json in which special tokens have names that no text spells.

    WordLevel, WordPiece, Unigram and some BPE models find a special token in a text as they find any other word.
    """

    def rename(text: str) -> str:
        return f"\uffff{text}\uffff" if text in specials else text  # U+FFFF is not a character

    vocabulary, out = model["vocab"], dict(model)
    if isinstance(vocabulary, dict):
        out["vocab"] = {rename(text): i for text, i in vocabulary.items()}
    else:
        out["vocab"] = [[rename(text), score] for text, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        out["unk_token"] = rename(model["unk_token"])
    if "merges" in model:
        parts = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        out["merges"] = [pair for pair in parts if not specials & {*pair, "".join(pair)}]
    return out


def _without_prefix(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a tokenizer.json without the steps that put a space in front of a text."""

    def changed(step: Any) -> Any:
        if not isinstance(step, dict):
            return step
        if step["type"] == "Metaspace":
            return {**step, "prepend_scheme": "never"}
        if step["type"] == "ByteLevel":
            return {**step, "add_prefix_space": False}
        for parts in ("pretokenizers", "normalizers"):
            if parts in step:
                return {**step, parts: [changed(s) for s in step[parts] if s["type"] != "Prepend"]}
        return None if step["type"] == "Prepend" else step

    return {**content, **{part: changed(content[part]) for part in ("normalizer", "pre_tokenizer")}}
