"""Training of tokenizers (byte-level BPE and WordPiece) by the `tokenizers` library."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from ssljax.data.config import TokenizerConfig
from ssljax.data.plain_text import BETWEEN_LINES, PIECE

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)

# Special tokens: {role: text}.
BYTE_LEVEL = {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>", "mask": "<mask>"}
WORDPIECE = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
# Each merge reads the words that it changes from end to end, so the time grows with the square of the longest word.
LONGEST_WORD = 256
# Classes of characters: a run of one class can be one word of the pre-tokenizer.
_CLASSES = {
    "bpe": (r"[^\W_]", r"(?:[^\w\s]|_)", r"\s"),
    "wordpiece": (r"(?:[^\W_]|[^\x00-\x7f\s\u3000-\u303f\uff00-\uffef])",),
}


Pieces = Callable[[], Iterable[str]]  # starts anew at each call


def train(settings: TokenizerConfig, documents: Callable[[], Iterable[Iterable[str]]]) -> "tokenizers.Tokenizer":
    """Trains the tokenizer of a config on documents, which are read one after another.

    Words of more than `LONGEST_WORD` characters are cut for the training. The tokenizer itself cuts no word.

    Args:
        settings: the config.
        documents: a function that returns the documents, each as blocks of text; it may be called several times.
    """
    log.info("training a %s tokenizer of %d tokens", settings.name, settings.vocab_size)
    start, words = time.monotonic(), _Words(settings.name)

    def pieces() -> Iterator[str]:
        words.cuts = words.characters = 0
        for document in documents():
            for piece in _pieces(document):
                yield from words.cut(piece)

    model = (_train_bpe if settings.name == "bpe" else _train_wordpiece)(settings, pieces)
    if words.cuts:
        log.info("words of more than %d characters are cut for the training (%d cuts)", LONGEST_WORD, words.cuts)
    log.info("trained the tokenizer on %d characters in %.1f s", words.characters, time.monotonic() - start)
    return model


def _pieces(blocks: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """Cuts a text that comes in blocks after line ends between two words, where both pre-tokenizers split too."""
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > size and (match := BETWEEN_LINES.search(rest, start + size)):
            yield rest[start : match.end()]
            start = match.end()
        rest = rest[start:]
    yield rest


class _Words:
    """Cuts long words of texts.

    Attributes:
        cuts: number of cuts so far.
        characters: number of characters so far.
    """

    def __init__(self, kind: str):
        self._run = re.compile("|".join(f"(?<!{x})" + f"{x}{{{LONGEST_WORD + 1},}}" for x in _CLASSES[kind]))
        self.cuts = self.characters = 0

    def cut(self, text: str) -> list[str]:
        """Returns the parts of a text, whose words have at most `LONGEST_WORD` characters."""
        runs = (match.span() for match in self._run.finditer(text))
        ends = [end for first, last in runs for end in range(first + LONGEST_WORD, last, LONGEST_WORD)]
        self.cuts += len(ends)
        self.characters += len(text)
        return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)])]


def _train_bpe(settings: TokenizerConfig, pieces: Pieces) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.normalizer = normalizers.Lowercase() if settings.lowercase else None
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        # eos must not have id 2: a CLIP in the Hugging Face format then takes the largest id as the end of a text.
        special_tokens=[BYTE_LEVEL[role] for role in ("pad", "bos", "mask", "eos")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(pieces(), trainer)
    return model


def _train_wordpiece(settings: TokenizerConfig, pieces: Pieces) -> "tokenizers.Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    def with_text_steps(model: models.WordPiece) -> Tokenizer:
        out = Tokenizer(model)
        out.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        out.decoder = decoders.WordPiece()
        out.normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase)
        return out

    draft = with_text_steps(models.WordPiece(unk_token=WORDPIECE["unk"]))
    # The library numbers ##letters in the order of a hash map, and ties between merges are broken by number, so each
    # training would give another vocabulary. Special tokens have a fixed order, so a draft has the letters as such.
    letters = sorted(set().union(*(draft.normalizer.normalize_str(piece) for piece in pieces())))
    inner = [f"##{x}" for x in letters if len(draft.pre_tokenizer.pre_tokenize_str(f"a{x}")) == 1 and not x.isspace()]
    specials = list(WORDPIECE.values())
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size, special_tokens=specials + inner, show_progress=False
    )
    draft.train_from_iterator(pieces(), trainer)
    model = with_text_steps(models.WordPiece(draft.get_vocab(), unk_token=WORDPIECE["unk"]))
    model.add_special_tokens([AddedToken(text, special=True) for text in specials])
    return model
