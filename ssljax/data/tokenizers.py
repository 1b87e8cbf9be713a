"""Tokenizers: bytes, byte-level BPE and WordPiece (trained by the `tokenizers` library), files of either library."""

import abc
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.data.cache import build_once
from ssljax.data.config import DataConfig, SourceConfig, TokenizerConfig, cache_root
from ssljax.data.declared import is_declared
from ssljax.data.digests import content_key
from ssljax.data.plain_text import TextEncoder, check_text
from ssljax.data.rows import Affixes, affixes_of, fill_rows, last_token, pad_token
from ssljax.data.selection import Rows, read, selected_keys
from ssljax.data.sentence_piece import SentencePiece
from ssljax.data.sources import blocks_of, expand
from ssljax.data.tokenizer_files import SETTINGS, copy_files, find_file, open_file, read_specials, write_class
from ssljax.data.tokenizer_training import BYTE_LEVEL, train

log = logging.getLogger(__name__)

_ENDS = frozenset(".?!")
_CLOSING = " \n\r\t\"')]}*_\u201d\u2019\u00bb"  # may follow the end of a sentence


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Attributes:
        vocab_size: number of ids, special tokens included.
        special_ids: ids of the special tokens pad, mask, cls, sep, bos, eos, unk, as far as they exist.
        fingerprint: text that differs between tokenizers.
        affixes: tokens before and after a text in mode `documents`.
        sentence_ends: ids of the tokens whose text ends with a full stop, a question or an exclamation mark, which
            closing quotes and brackets may follow.
        byte_lengths: int32 [V], number of UTF-8 bytes of each token (0 for special tokens); None if a token has no
            fixed number of bytes (WordPiece drops spaces).
        word_starts: bool [V], True for tokens that begin a word, and for special tokens; None if the vocabulary does
            not mark the starts of words (the BPE of CLIP and GPT-1 marks their ends).
    """

    vocab_size: int
    special_ids: dict[str, int]
    fingerprint: str
    affixes: Affixes
    sentence_ends: tuple[int, ...]
    byte_lengths: np.ndarray | None
    word_starts: np.ndarray | None

    @property
    def pad(self) -> int:
        """The id of padding."""
        return pad_token(self.special_ids)

    @abc.abstractmethod
    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32. A special token that a text spells is encoded as ordinary text.

        Raises:
            UserError: a text has half of a surrogate pair.
        """

    @abc.abstractmethod
    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """Yields the ids of one text that comes in blocks, in parts: joined, they are the ids of the whole text."""

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
        return fill_rows(flat, np.cumsum(sizes) - sizes, sizes, width, self.affixes, self.pad)


class ByteTokenizer(Tokenizer):
    """Token b is byte b of the UTF-8 text; 256 to 259 are the special tokens pad, bos, eos, mask."""

    vocab_size = 260
    fingerprint = "bytes"

    def __init__(self) -> None:
        self.special_ids = {role: 256 + i for i, role in enumerate(BYTE_LEVEL)}
        self.affixes = affixes_of(self.special_ids)
        self.sentence_ends = tuple(sorted(b".?!"))
        self.byte_lengths: np.ndarray | None = np.array([1] * 256 + [0] * 4, np.int32)
        # A space belongs to the word after it, as in byte-level BPE.
        self.word_starts: np.ndarray | None = np.array([bytes([b]).isspace() for b in range(256)] + [True] * 4)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        for number, text in enumerate(texts, 1):
            check_text(text, f"text {number}")
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        for block in blocks:
            yield from self.encode([block])

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(i) for i in ids if 0 <= int(i) < 256).decode("utf-8", errors="replace")

    def save(self, path: pathlib.Path) -> None:
        """Writes a byte-level BPE without merges."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        letters = _byte_letters()
        model = Tokenizer(models.BPE({letter: byte for byte, letter in letters.items()}, []))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.decoder = decoders.ByteLevel()
        model.add_special_tokens([AddedToken(text, special=True) for text in BYTE_LEVEL.values()])
        model.save(str(path))


class LibraryTokenizer(Tokenizer):
    """A tokenizer file: tokenizer.json of the `tokenizers` library, a SentencePiece model or a bare vocabulary.

    Special tokens are those that the files beside it state (`tokenizer_files.read_specials`).
    """

    def __init__(self, path: pathlib.Path):
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"data.tokenizer.path: {path} does not exist") from error
        except OSError as error:
            raise UserError(f"data.tokenizer.path: {path} cannot be read ({error.strerror})") from error
        try:
            self._model = open_file(path)
            vocabulary = self._model.get_vocab(with_added_tokens=True)
            named = read_specials(path.parent, vocabulary)
        except UserError as error:
            raise UserError(f"data.tokenizer.path: {error}") from error
        self.vocab_size = max(vocabulary.values()) + 1
        self.special_ids = {role: vocabulary[text] for role, text in named.items()}
        self._encoder = TextEncoder(self._model, named.values())
        self.affixes = affixes_of_file(self._model, self.special_ids)
        marked = sorted(i for text, i in vocabulary.items() if not _ENDS.isdisjoint(text))
        self.sentence_ends = tuple(i for i in marked if ends_sentence(self.decode([i])))
        self.byte_lengths = None
        if not isinstance(self._model, SentencePiece):
            content = self._model.to_str().encode()
            self.byte_lengths = _byte_lengths(json.loads(content), vocabulary, self.vocab_size, named.values())
            begins = _begins_word(json.loads(content))
        else:
            begins = _after_space
        self.word_starts = None
        if begins is not None:
            self.word_starts = np.ones(self.vocab_size, bool)
            for text in vocabulary.keys() - set(named.values()):
                self.word_starts[vocabulary[text]] = begins(text)
        self.fingerprint = digest([hashlib.sha256(content).hexdigest(), self.special_ids, self.affixes])
        if last_token(self.special_ids) is None:
            log.warning(
                "%s: no end of a text is known (eos_token or sep_token in tokenizer_config.json beside it); texts "
                "follow each other without a mark",
                path,
            )

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        return self._encoder.encode(texts)

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        return self._encoder.encode_blocks(blocks)

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: pathlib.Path) -> None:
        self._model.save(str(path))


def ends_sentence(text: str) -> bool:
    """Returns True if a text ends with the end of a sentence, and perhaps closing quotes, brackets and spaces."""
    return text.rstrip(_CLOSING).endswith(tuple(_ENDS))


def affixes_of_file(model: Any, special_ids: dict[str, int]) -> Affixes:
    """Returns the tokens around a text: those that the file of the tokenizer adds, else the first and last by role.

    A file that adds no token after a text is one of a decoder. Its training texts end with the end token.
    """
    by_role = affixes_of(special_ids)
    if isinstance(model, SentencePiece):
        return by_role
    try:
        text, marked = (model.encode("a", add_special_tokens=added).ids for added in (False, True))
    except Exception:  # the library raises bare Exception if "a" is unknown and the file has no token for that
        return by_role
    starts = [i for i in range(len(marked) - len(text) + 1) if marked[i : i + len(text)] == text]
    if not text or len(starts) != 1:
        return by_role
    before, after = tuple(marked[: starts[0]]), tuple(marked[starts[0] + len(text) :])
    return Affixes(before, after) if after else Affixes(before or by_role.before, by_role.after)


@functools.cache
def _byte_letters() -> dict[int, str]:
    """Returns the letter of each byte in byte-level BPE (Radford et al., 2019): the same, or the next free letter."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def _byte_lengths(
    content: dict[str, Any], vocabulary: dict[str, int], size: int, specials: Collection[str]
) -> np.ndarray | None:
    """Returns the bytes of each token of a byte-level vocabulary, in which a letter is one byte; None for others."""
    model = content["model"]
    if model["type"] != "BPE" or model["end_of_word_suffix"] or "ByteLevel" not in json.dumps(content["pre_tokenizer"]):
        return None
    lengths = np.zeros(size, np.int32)
    added = {token["content"]: token["special"] for token in content["added_tokens"]}
    for text, i in vocabulary.items():
        own = len(text.encode()) if text in added else len(text)  # added tokens are not written in byte letters
        lengths[i] = 0 if added.get(text) or text in specials else own
    return lengths


def _begins_word(content: dict[str, Any]) -> Callable[[str], bool] | None:
    """Returns a function that tells from the text of a token whether it begins a word; None: texts do not tell.

    Args:
        content: a tokenizer.json. WordPiece marks the tokens inside a word, byte-level BPE and SentencePiece write the
            space before a word into its first token.
    """
    model, added = content["model"], {token["content"] for token in content["added_tokens"]}
    if model["type"] == "WordLevel":
        return lambda text: True
    if model["type"] == "WordPiece":
        inside = model["continuing_subword_prefix"]
        return lambda text: text in added or not text.startswith(inside)
    if model.get("end_of_word_suffix"):
        return None
    if "ByteLevel" in json.dumps(content["pre_tokenizer"]):
        spaces = tuple(letter for byte, letter in _byte_letters().items() if bytes([byte]).isspace())
        return lambda text: text in added or text.startswith(spaces)
    if any(_after_space(text) for text in dict(model["vocab"])):
        return lambda text: text in added or _after_space(text)
    return None


def _after_space(piece: str) -> bool:
    """Returns True if a piece of SentencePiece begins with a space."""
    return piece.startswith("\u2581")


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
    if file.suffix in (".model", ".json") and file.name != "vocab.json":
        name = "tokenizer.model" if file.suffix == ".model" else name
        shutil.copyfile(file, folder / name)
    else:
        open_file(file).save(str(folder / name))
    if config.tokenizer.name == "file":
        copy_files(SETTINGS, file.parent, folder)
        write_class(file, folder)
    return folder / name


def pin_tokenizer(config: DataConfig) -> DataConfig:
    """Returns a config with the tokenizer as it is now, as a file in the cache that is named after its content.

    Later, the tokenizer stays the same if texts grow that it was trained on, or if its file is replaced.

    Raises:
        UserError: as `open_tokenizer`.
    """
    sources = [*config.sources, *config.streams.values()]
    if config.tokenizer.name == "bytes" or is_declared(config):
        return config
    if not any("text" in selected_keys(source) for source in sources):
        return config
    with tempfile.TemporaryDirectory() as place:
        file = save_tokenizer(config, place)
        files = sorted(path for path in pathlib.Path(place).rglob("*") if path.is_file())
        content = [[str(path.relative_to(place)), path.read_bytes().hex()] for path in files]
        build = functools.partial(shutil.copytree, place, dirs_exist_ok=True)
        folder = build_once(cache_root(config) / f"pinned-{digest(content)}", build)
    tokenizer = TokenizerConfig(name="file", path=str(folder.resolve() / file.name))
    return dataclasses.replace(config, tokenizer=tokenizer)


def _tokenizer_file(config: DataConfig) -> pathlib.Path:
    """Returns the tokenizer file of the config, or a cached one, which is trained on first use."""
    settings = config.tokenizer
    if settings.name == "file":
        path = pathlib.Path(settings.path or "")
        if not path.exists():  # a workdir may have a $ in its name
            path = pathlib.Path(expand(settings.path or "", "data.tokenizer.path")).expanduser()
        if path.is_dir():
            file = find_file(path)
            if file is None:
                raise UserError(f"data.tokenizer.path: {path} has no tokenizer.json and no other tokenizer file")
            return file
        return path
    key = digest(
        [
            "tokenizer",
            3,
            settings.name,
            settings.vocab_size,
            settings.lowercase,
            [content_key(s, cache_root(config)) for s in config.sources],
        ]
    )
    build = functools.partial(_train, settings, config.sources)
    return build_once(cache_root(config) / f"tokenizer-{key}", build) / "tokenizer.json"


def _train(settings: TokenizerConfig, sources: tuple[SourceConfig, ...], folder: pathlib.Path) -> None:
    """Trains a tokenizer on the texts of the sources and writes it into a folder."""

    def all_documents() -> Iterator[Iterator[str]]:
        return itertools.chain.from_iterable(map(documents, sources))

    train(settings, all_documents).save(str(folder / "tokenizer.json"))


def documents(config: SourceConfig) -> Iterator[Iterator[str]]:
    """Yields the documents of a source, each as blocks of text; they are read one after another.

    Errors are those of `document`.
    """
    rows = read(config)
    for row in map(int, rows.index):
        yield document(rows, row)


def document(rows: Rows, row: int) -> Iterator[str]:
    """Yields the text of a row of the table in blocks.

    Raises:
        UserError: the row is not text, or has half of a surrogate pair.
    """
    location = f"{rows.location(row)} of {rows.title}"
    for block in blocks_of(rows.columns["text"], row):
        if not isinstance(block, str):
            raise UserError(f"data.keys.text: got {block!s:.40} at {location}, must be text")
        check_text(block, f"data.keys.text: {location}")
        yield block
