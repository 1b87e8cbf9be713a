"""Tokenizers: bytes, byte-level BPE and WordPiece (trained by the `tokenizers` library), files of either library."""

import abc
import functools
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.files import replacing
from ssljax.base.hashing import digest
from ssljax.data.cache import build_once
from ssljax.data.config import DataConfig, SourceConfig, TokenizerConfig, cache_root
from ssljax.data.rows import fill_rows
from ssljax.data.selection import fingerprint, read
from ssljax.data.sentence_piece import SentencePiece
from ssljax.data.sources import Blobs, expand

if TYPE_CHECKING:
    import tokenizers

# Special tokens: {role: text} for the trained tokenizers, {text: role} for other tokenizers.
_BYTE_LEVEL = {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>", "mask": "<mask>"}
_WORDPIECE = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_OTHER = {"<s>": "bos", "</s>": "eos", "<unk>": "unk", "<|endoftext|>": "eos"}
_SPECIALS = {text: role for group in (_BYTE_LEVEL, _WORDPIECE) for role, text in group.items()} | _OTHER

# Files next to a tokenizer that define its use: special tokens, side of padding, chat templates.
SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates",  # a folder
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", *SETTINGS)


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Attributes:
        vocab_size: number of ids, special tokens included.
        special_ids: ids of the special tokens pad, mask, cls, sep, bos, eos, unk, as far as they exist.
        fingerprint: text that differs between tokenizers.
        byte_lengths: int32 [V], number of UTF-8 bytes of each token (0 for special tokens); None if a token has no
            fixed number of bytes (WordPiece drops spaces).
    """

    vocab_size: int
    special_ids: dict[str, int]
    fingerprint: str
    byte_lengths: np.ndarray | None

    @abc.abstractmethod
    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32, without special tokens."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; special tokens are left out."""

    @abc.abstractmethod
    def save(self, path: pathlib.Path) -> None:
        """Writes a tokenizer.json of the `tokenizers` library."""

    def encode_rows(self, texts: Sequence[str], width: int) -> dict[str, np.ndarray]:
        """Returns texts as rows of `width` tokens, in the form of mode `documents` (see `rows.fill_rows`)."""
        ids = self.encode(list(texts))
        sizes = np.array([len(i) for i in ids], np.int64)
        flat = np.concatenate([*ids, np.zeros(0, np.int32)])
        return fill_rows(flat, np.cumsum(sizes) - sizes, sizes, width, self.special_ids)


class ByteTokenizer(Tokenizer):
    """Token b is byte b of the UTF-8 text; 256 to 259 are the special tokens pad, bos, eos, mask."""

    vocab_size = 260
    fingerprint = "bytes"

    def __init__(self) -> None:
        self.special_ids = {role: 256 + i for i, role in enumerate(_BYTE_LEVEL)}
        self.byte_lengths: np.ndarray | None = np.array([1] * 256 + [0] * 4, np.int32)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(i) for i in ids if 0 <= int(i) < 256).decode("utf-8", errors="replace")

    def save(self, path: pathlib.Path) -> None:
        """Writes a byte-level BPE without merges."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        letters = _byte_letters()
        model = Tokenizer(models.BPE({letter: byte for byte, letter in letters.items()}, []))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.decoder = decoders.ByteLevel()
        model.add_special_tokens([AddedToken(text, special=True) for text in _BYTE_LEVEL.values()])
        model.save(str(path))


class LibraryTokenizer(Tokenizer):
    """A tokenizer.json of the `tokenizers` library, or a SentencePiece model (`*.model`)."""

    def __init__(self, path: pathlib.Path):
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"data.tokenizer.path: {path} does not exist") from error
        except OSError as error:
            raise UserError(f"data.tokenizer.path: {path} cannot be read ({error.strerror})") from error
        self._model = open_file(path)
        self._is_sentence_piece = isinstance(self._model, SentencePiece)
        vocabulary = self._model.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.special_ids: dict[str, int] = {}
        for text, role in _SPECIALS.items():
            if text in vocabulary:
                self.special_ids.setdefault(role, vocabulary[text])
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        self.byte_lengths = (
            None if self._is_sentence_piece else _byte_lengths(json.loads(content), vocabulary, self.vocab_size)
        )

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        if self._is_sentence_piece:
            return [np.array(self._model.encode(text).ids, np.int32) for text in texts]
        # The library processes a batch in threads. Long texts are cut at positions that no token can span.
        pieces = [_pieces(text) for text in texts]
        flat = [piece for group in pieces for piece in group]
        encoded = iter(self._model.encode_batch_fast(flat, add_special_tokens=False))
        out = []
        for group in pieces:
            ids = [np.array(next(encoded).ids, np.int32) for _ in group]
            out.append(np.concatenate(ids) if ids else np.zeros(0, np.int32))
        return out

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: pathlib.Path) -> None:
        self._model.save(str(path))


def open_file(path: pathlib.Path) -> Any:
    """Opens a tokenizer.json without padding and truncation, or a SentencePiece model (`*.model`).

    A SentencePiece model is read on first use.

    Raises:
        UserError: the file is not a tokenizer.json.
    """
    if path.suffix == ".model":
        return SentencePiece(path)
    from tokenizers import Tokenizer

    try:
        model = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"data.tokenizer.path: {path} is not a tokenizer.json ({error})") from error
    return unpadded(model)


def unpadded(tokenizer: Any) -> Any:
    """Returns a copy without padding and truncation. A SentencePiece model, which has neither, is returned itself."""
    if isinstance(tokenizer, SentencePiece):
        return tokenizer
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def _pieces(text: str, size: int = 1 << 16) -> list[str]:
    """Cuts a text after line ends between two words, where all trained pre-tokenizers split too."""
    out, start = [], 0
    while len(text) - start > size:
        match = _BETWEEN_LINES.search(text, start + size)
        if match is None:
            break
        out.append(text[start : match.end()])
        start = match.end()
    return [*out, text[start:]]


_BETWEEN_LINES = re.compile(r"(?<=\w)\n(?=\w)")


@functools.cache
def _byte_letters() -> dict[int, str]:
    """Returns the letter of each byte in byte-level BPE (Radford et al., 2019): the same, or the next free letter."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def _byte_lengths(content: dict[str, Any], vocabulary: dict[str, int], size: int) -> np.ndarray | None:
    """Returns the bytes of each token of a byte-level vocabulary, in which a letter is one byte; None for others."""
    if content["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(content.get("pre_tokenizer")):
        return None
    lengths = np.zeros(size, np.int32)
    special = {token["content"] for token in content["added_tokens"] if token["special"]}
    for text, i in vocabulary.items():
        lengths[i] = 0 if text in special else len(text)
    return lengths


def open_tokenizer(config: DataConfig) -> Tokenizer:
    """Returns the tokenizer of a config: bytes, a file, or one that is trained once and cached.

    It is trained on the training texts of `config` only.
    """
    if config.tokenizer.name == "bytes":
        return ByteTokenizer()
    return LibraryTokenizer(_tokenizer_file(config))


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json or of a SentencePiece model."""
    return LibraryTokenizer(pathlib.Path(path))


def save_tokenizer(config: DataConfig, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes the tokenizer of a config into an empty folder, for `load_tokenizer`.

    The files of `SETTINGS` in the folder of a tokenizer file are copied too.

    Returns:
        The path of tokenizer.json, or of tokenizer.model for a SentencePiece model.
    """
    folder, name = pathlib.Path(folder), "tokenizer.json"
    if config.tokenizer.name == "bytes":
        ByteTokenizer().save(folder / name)
        return folder / name
    file = _tokenizer_file(config)
    name = "tokenizer.model" if file.suffix == ".model" else name
    shutil.copyfile(file, folder / name)
    if config.tokenizer.name == "file":
        copy_files(SETTINGS, file.parent, folder)
    return folder / name


def copy_files(names: Iterable[str], source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the named files and folders from `source` to `target`, as far as they exist."""
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).is_file():
            with replacing(target / name) as copy:
                shutil.copyfile(source / name, copy)


def _tokenizer_file(config: DataConfig) -> pathlib.Path:
    """Returns the tokenizer file of the config, or a cached one, which is trained on first use."""
    settings = config.tokenizer
    if settings.name == "file":
        return pathlib.Path(expand(settings.path or "", "data.tokenizer.path")).expanduser()
    key = digest(
        [
            "tokenizer",
            2,
            settings.name,
            settings.vocab_size,
            settings.lowercase,
            [fingerprint(s) for s in config.sources],
        ]
    )
    build = functools.partial(_train, settings, config.sources)
    return build_once(cache_root(config) / f"tokenizer-{key}", build) / "tokenizer.json"


def _train(settings: TokenizerConfig, sources: tuple[SourceConfig, ...], folder: pathlib.Path) -> None:
    """Trains a tokenizer on the texts of the sources and writes it into a folder."""
    pieces = [piece for source in sources for text in texts(source)[0] for piece in _pieces(text)]
    train = _train_bpe if settings.name == "bpe" else _train_wordpiece
    train(settings, pieces).save(str(folder / "tokenizer.json"))


def _train_bpe(settings: TokenizerConfig, pieces: list[str]) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.normalizer = normalizers.Lowercase() if settings.lowercase else None
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        # eos must not have id 2: a CLIP in the Hugging Face format then takes the largest id as the end of a text.
        special_tokens=[_BYTE_LEVEL[role] for role in ("pad", "bos", "mask", "eos")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(pieces, trainer)
    return model


def _train_wordpiece(settings: TokenizerConfig, pieces: list[str]) -> "tokenizers.Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    def with_text_steps(model: models.WordPiece) -> Tokenizer:
        out = Tokenizer(model)
        out.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        out.decoder = decoders.WordPiece()
        out.normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase)
        return out

    draft = with_text_steps(models.WordPiece(unk_token=_WORDPIECE["unk"]))
    # The library numbers ##letters in the order of a hash map, and ties between merges are broken by number, so each
    # training would give another vocabulary. Special tokens have a fixed order, so a draft has the letters as such.
    letters = sorted(set().union(*(draft.normalizer.normalize_str(piece) for piece in pieces)))
    inner = [f"##{x}" for x in letters if len(draft.pre_tokenizer.pre_tokenize_str(f"a{x}")) == 1 and not x.isspace()]
    specials = list(_WORDPIECE.values())
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size, special_tokens=specials + inner, show_progress=False
    )
    draft.train_from_iterator(pieces, trainer)
    model = with_text_steps(models.WordPiece(draft.get_vocab(), unk_token=_WORDPIECE["unk"]))
    model.add_special_tokens([AddedToken(text, special=True) for text in specials])
    return model


def texts(config: SourceConfig) -> tuple[list[str], np.ndarray]:
    """Returns the documents of a source and their row numbers, int64 [N].

    Raises:
        UserError: a row is not text.
    """
    rows = read(config)
    column = rows.columns["text"]
    documents = []
    for row in rows.index:
        text = b"..." if isinstance(column, Blobs) else column[row]
        if not isinstance(text, str):
            raise UserError(
                f"data.keys.text: got {text!s:.40} at {rows.location(int(row))} of {rows.title}, must be text"
            )
        documents.append(text)
    return documents, rows.index
