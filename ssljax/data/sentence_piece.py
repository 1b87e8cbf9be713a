"""SentencePiece models (Kudo and Richardson 2018), read by the package `sentencepiece` when they are first used."""

import functools
import pathlib
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ssljax.base.errors import UserError


class Encoding(NamedTuple):
    """The tokens of a text."""

    ids: list[int]
    tokens: list[str]


class SentencePiece:
    """A `*.model` file, with the methods of `tokenizers.Tokenizer` that are used here.

    It knows of no tokens around a text: `add_special_tokens` adds none.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)

    @functools.cached_property
    def _model(self) -> Any:
        try:
            import sentencepiece
        except ImportError as error:
            raise UserError(
                f"{self.path}: reading a SentencePiece model needs a package (pip install sentencepiece)"
            ) from error
        try:
            return sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self.path}: is not a SentencePiece model ({str(error).splitlines()[0]})") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        ids = self._model.encode(text)
        return Encoding(ids, [self.id_to_token(i) for i in ids])

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Encoding]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        kept = [int(i) for i in ids if not (skip_special_tokens and self._model.is_control(int(i)))]
        return self._model.decode(kept)

    def token_to_id(self, token: str) -> int | None:
        return self.get_vocab().get(token)

    def id_to_token(self, id: int) -> str:
        return self._model.id_to_piece(id)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return {self._model.id_to_piece(i): i for i in range(len(self._model))}

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return len(self._model)

    def save(self, path: str) -> None:
        shutil.copyfile(self.path, path)
