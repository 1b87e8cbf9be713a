"""Token caches on disk, and their examples: windows, packed rows, documents."""

import array
import itertools
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ssljax.base.errors import UserError
from ssljax.base.hashing import digest
from ssljax.data.cache import build_once
from ssljax.data.config import SourceConfig
from ssljax.data.digests import content_key
from ssljax.data.rows import KEYS, fill_rows, last_token
from ssljax.data.tokenizers import Tokenizer, documents

log = logging.getLogger(__name__)

_BATCH_CHARACTERS = 1 << 23  # characters that are tokenised at a time: bounds memory, keeps all threads busy


@dataclass(frozen=True)
class TokenCache:
    """The tokens of all documents of a source, end to end. The last token of a document is the end or separator token.

    Attributes:
        tokens: unsigned integers [N], on disk.
        ends: int64 [documents + 1]; document i is tokens[ends[i] : ends[i + 1]], with its last token.
        bytes: number of UTF-8 bytes of the texts.
        folder: folder of the cache; packing plans are stored next to it.
    """

    tokens: np.ndarray
    ends: np.ndarray
    bytes: int
    folder: pathlib.Path


def open_tokens(config: SourceConfig, tokenizer: Tokenizer, root: pathlib.Path) -> TokenCache:
    """Returns the token cache of a source, which is built on first use."""
    key = digest(["tokens", 2, content_key(config, root), tokenizer.fingerprint])
    folder = build_once(root / f"tokens-{key}", lambda temporary: _tokenize(config, tokenizer, temporary))
    meta = json.loads((folder / "meta.json").read_text())
    shape = (meta["tokens"],)
    # An empty file cannot be mapped.
    tokens = np.memmap(folder / "tokens.bin", meta["dtype"], "r", shape=shape) if shape[0] else np.zeros(0, np.uint16)
    return TokenCache(tokens, np.load(folder / "ends.npy"), meta["bytes"], folder)


def _tokenize(config: SourceConfig, tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Writes the tokens of all documents of a source into a folder."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    end = last_token(tokenizer.special_ids)
    last = np.array([] if end is None else [end], dtype)
    lengths, size = array.array("q"), 0
    unknown, unk = 0, tokenizer.special_ids.get("unk", -1)

    def counted(blocks: Iterator[str]) -> Iterator[str]:
        nonlocal size
        for block in blocks:
            size += len(block.encode("utf-8"))
            yield block

    with (folder / "tokens.bin").open("wb") as file:
        for document in _encoded(map(counted, documents(config)), tokenizer):
            count = len(last)
            for ids in document:
                unknown += int(np.count_nonzero(ids == unk))
                count += len(ids)
                file.write(ids.astype(dtype).data)
            file.write(last.data)
            lengths.append(count)
    if unknown:
        log.warning(
            "%s [%s]: %d of %d tokens are unknown to the tokenizer", config.source, config.split, unknown, sum(lengths)
        )
    ends = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, np.int64))]).astype(np.int64)
    np.save(folder / "ends.npy", ends)
    meta = {"dtype": dtype.name, "tokens": int(ends[-1]), "bytes": size}
    (folder / "meta.json").write_text(json.dumps(meta))


def _encoded(documents: Iterable[Iterator[str]], tokenizer: Tokenizer) -> Iterator[Iterable[np.ndarray]]:
    """Yields the ids of each document in parts.

    Documents of one block are encoded in groups of at most `_BATCH_CHARACTERS`; a longer one is encoded as it is read.
    """
    group: list[str] = []
    size = 0
    for blocks in documents:
        first, second = next(blocks, ""), next(blocks, None)
        if group and (second is not None or size + len(first) > _BATCH_CHARACTERS):
            yield from ([ids] for ids in tokenizer.encode(group))
            group, size = [], 0
        if second is None:
            group.append(first)
            size += len(first)
        else:
            yield tokenizer.encode_blocks(itertools.chain([first, second], blocks))
    yield from ([ids] for ids in tokenizer.encode(group))


class Windows:
    """Windows of a corpus: row i is tokens [i (T - overlap), i (T - overlap) + T). Gives `tokens` int32 [B, T]."""

    def __init__(self, cache: TokenCache, seq_len: int, overlap: int, title: str):
        self.cache, self.seq_len, self.stride = cache, seq_len, seq_len - overlap
        self.size = max(0, len(cache.tokens) - seq_len + self.stride) // self.stride
        if self.size < 1:
            raise UserError(f"data.seq_len: got {seq_len}, must be at most the {len(cache.tokens)} tokens of {title}")
        self.elements = {"tokens": {"shape": [seq_len], "dtype": "int32"}}

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        positions = rows[:, None] * self.stride + np.arange(self.seq_len)
        return {"id": rows, "tokens": self.cache.tokens[positions].astype(np.int32)}

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Returns the number of tokens of each row, without padding."""
        return np.full(len(rows), self.seq_len)


class Packed:
    """Documents packed into rows of T tokens.

    A document longer than T is cut into pieces; each piece is a separate segment. A batch has, int32 [B, T] each,
    `tokens`, `segment_ids` (1, 2, ... in a row; 0 = padding) and `positions` (from 0 in each segment).
    """

    def __init__(self, cache: TokenCache, seq_len: int, pad: int, title: str):
        self.cache, self.seq_len, self.pad = cache, seq_len, pad
        folder = build_once(cache.folder.with_name(f"{cache.folder.name}-pack-{seq_len}"), self._plan)
        self.firsts = np.load(folder / "firsts.npy")  # [rows + 1]; row i has the pieces firsts[i] : firsts[i + 1]
        self.starts = np.load(folder / "starts.npy")  # [pieces], first token of a piece
        self.piece_lengths = np.load(folder / "lengths.npy")  # [pieces]
        self.size = len(self.firsts) - 1
        if self.size < 1:
            raise UserError(f"data.split: {title} is empty, must have at least one token")
        self.elements = {key: {"shape": [seq_len], "dtype": "int32"} for key in KEYS}

    def _plan(self, folder: pathlib.Path) -> None:
        """Writes the pieces of each row into a folder."""
        starts, lengths = cut(self.cache.ends, self.seq_len)
        row = pack(lengths, self.seq_len)
        order = np.argsort(row, kind="stable")
        np.save(folder / "firsts.npy", np.searchsorted(row[order], np.arange(row.max(initial=-1) + 2)))
        np.save(folder / "starts.npy", starts[order])
        np.save(folder / "lengths.npy", lengths[order])

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        out = {"id": rows} | {key: np.zeros((len(rows), self.seq_len), np.int32) for key in self.elements}
        out["tokens"][:] = self.pad
        for i, row in enumerate(rows):
            start = 0
            pieces = range(self.firsts[row], self.firsts[row + 1])
            for segment, piece in enumerate(pieces, 1):
                first, length = self.starts[piece], self.piece_lengths[piece]
                columns = slice(start, start + length)
                out["tokens"][i, columns] = self.cache.tokens[first : first + length]
                out["segment_ids"][i, columns] = segment
                out["positions"][i, columns] = np.arange(length)
                start += length
        return out

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Returns the number of tokens of each row, without padding."""
        starts, stops = np.asarray(self.firsts[rows]), np.asarray(self.firsts[rows + 1])
        low = starts.min()
        sums = np.concatenate([[0], np.cumsum(self.piece_lengths[low : stops.max()])])
        return sums[stops - low] - sums[starts - low]


def cut(ends: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents into pieces of at most `width` tokens; returns their starts and lengths, int64 [P] each."""
    sizes = np.diff(ends)
    counts = -(-sizes // width)
    document = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = ends[:-1][document] + number * width
    return starts, np.minimum(ends[1:][document] - starts, width)


def pack(lengths: np.ndarray, width: int) -> np.ndarray:
    """Returns the row of each piece, int64 [P], by best-fit decreasing packing.

    The longest piece comes first, and each piece goes into the fullest row that it fits into. The number of rows is
    at most 11/9 of the optimum, plus one (Johnson, 1974). Equal lengths keep their order.
    """
    rows = np.empty(len(lengths), np.int64)
    free: list[list[int]] = [[] for _ in range(width + 1)]  # rows by their free tokens
    mask = 0  # bit r is set if free[r] is not empty
    count = 0
    for piece in np.argsort(-lengths, kind="stable"):
        length = int(lengths[piece])
        fitting = mask >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = free[room].pop()
            if not free[room]:
                mask &= ~(1 << room)
        else:
            room, row = width, count
            count += 1
        rows[piece] = row
        left = room - length
        if left:
            free[left].append(row)
            mask |= 1 << left
    return rows


class Documents:
    """One document in a row, in the form of `rows.fill_rows`."""

    def __init__(self, cache: TokenCache, tokenizer: Tokenizer, seq_len: int):
        self.cache, self.seq_len, self.tokenizer = cache, seq_len, tokenizer
        self.ended = last_token(tokenizer.special_ids) is not None  # in the cache, an end token follows each text
        added = tokenizer.affixes.added
        if seq_len <= added:
            raise UserError(f"data.seq_len: got {seq_len}, must be > {added} (first and last token of a document)")
        self.elements = {key: {"shape": [seq_len], "dtype": "int32"} for key in KEYS}

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        """Returns the number of tokens of each text, without the end token that follows it in the cache."""
        return self.cache.ends[rows + 1] - self.cache.ends[rows] - self.ended

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Returns the number of tokens of each row, without padding."""
        return np.minimum(self._sizes(rows) + self.tokenizer.affixes.added, self.seq_len)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        starts = self.cache.ends[rows]
        affixes, pad = self.tokenizer.affixes, self.tokenizer.pad
        return fill_rows(self.cache.tokens, starts, self._sizes(rows), self.seq_len, affixes, pad)
