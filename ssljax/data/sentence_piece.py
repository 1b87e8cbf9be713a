"""SentencePiece models (Kudo and Richardson 2018), read by the package `sentencepiece` on first use."""

import functools
import itertools
import pathlib
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from ssljax.base.errors import UserError


class Encoding(NamedTuple):
    """The tokens of a text, as ids and as text."""

    ids: list[int]
    tokens: list[str]


class SentencePiece:
    """A SentencePiece model (`*.model`), with those methods of `tokenizers.Tokenizer` that this package uses.

    The file does not define special tokens around a text, so `add_special_tokens` adds none. Ids beyond the pieces
    of the model, such as the sentinels of T5 and padding of the vocabulary, decode to empty text.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)

    @functools.cached_property
    def _model(self) -> Any:
        try:
            import sentencepiece
        except ImportError as error:
            raise UserError(
                f"{self.path}: a SentencePiece model needs the package sentencepiece (pip install sentencepiece)"
            ) from error
        try:
            return sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self.path}: is not a SentencePiece model ({str(error).splitlines()[0]})") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        ids = self._model.encode(text)
        return Encoding(ids, [self.id_to_token(i) for i in ids])

    def encode_text(self, text: str, kept: Collection[str] = ()) -> list[int]:
        """Returns the ids of a text in which the control symbols `kept` are recognised.

        `encode` treats all control symbols as plain text.
        """
        known = {piece: self._controls[piece] for piece in kept if piece in self._controls}
        parts = re.split(f"({'|'.join(map(re.escape, known))})", text) if known else [text]
        ids = [[known[part]] if part in known else self._model.encode(part) for part in parts]
        return list(itertools.chain.from_iterable(ids))

    @property
    def controls(self) -> tuple[str, ...]:
        """The texts of the control symbols, which stand for special tokens."""
        return tuple(self._controls)

    @functools.cached_property
    def _controls(self) -> dict[str, int]:
        return {piece: i for piece, i in self.get_vocab().items() if self._model.is_control(i)}

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Encoding]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        pieces = [int(i) for i in ids if int(i) < len(self._model)]
        return self._model.decode([i for i in pieces if not (skip_special_tokens and self._model.is_control(i))])

    def token_to_id(self, token: str) -> int | None:
        return self.get_vocab().get(token)

    def id_to_token(self, id: int) -> str:
        return self._model.id_to_piece(id) if id < len(self._model) else ""

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return {self._model.id_to_piece(i): i for i in range(len(self._model))}

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return len(self._model)

    def save(self, path: str) -> None:
        shutil.copyfile(self.path, path)
