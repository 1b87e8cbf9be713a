"""Tokens of ordinary text, for every kind of tokenizer: cuts of long texts, spelled special tokens, broken text."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from ssljax.base.errors import UserError
from ssljax.data import load_tokenizer
from ssljax.data.tokenizers import ByteTokenizer

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "[MASK]", "<|endoftext|>", "<|odd|>"]
WORDS = ["one", "giant", "leap", "for", "mankind", "small", "Step", "and", "the", "moon", "ünï", "12", "x==y", "don't"]
RNG = np.random.default_rng(0)
CORPUS = [" ".join(RNG.choice(WORDS, 40)) for _ in range(200)]
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + (
    r"|\s+(?!\S)|\s+"
)
CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_bpe(pre, normalizer=None, **model):
    out = tokenizers.Tokenizer(models.BPE(**model))
    out.pre_tokenizer, out.normalizer, out.decoder = pre, normalizer, decoders.ByteLevel()
    out.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=SPECIALS,
            show_progress=False,
            **{k: v for k, v in model.items() if k == "end_of_word_suffix"},
        ),
    )
    return out


def unigram(pre, normalizer=None):
    out = tokenizers.Tokenizer(models.Unigram())
    out.pre_tokenizer, out.normalizer = pre, normalizer
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False, initial_alphabet=list("<>/[]|")
    )
    out.train_from_iterator(CORPUS, trainer)
    return out


def llama_2():
    """Merges over the whole text, spaces included, with bytes as a fallback."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = [*SPECIALS, *(f"<0x{i:02X}>" for i in range(256)), *model["vocab"], "</", "s>"]
    # A converter of SentencePiece files lists a merge that spells a special token.
    merges = [*map(tuple, model["merges"]), ("</", "s>")]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    out = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    out.normalizer, out.decoder = (
        trained.normalizer,
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )
    out.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return out


def words(model, pre, normalizer=None):
    out = tokenizers.Tokenizer(model)
    out.pre_tokenizer, out.normalizer = pre, normalizer
    out.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return out


def vocabulary(*more):
    return {text: i for i, text in enumerate(dict.fromkeys([*SPECIALS, *WORDS, *more]))}


def wordpiece():
    letters = [*"abcdefghijklmnopqrstuvwxyzü<>/[]|=1234567890"]
    return words(
        models.WordPiece(vocabulary(*letters, *(f"##{x}" for x in letters)), unk_token="<unk>"),
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(),
    )


def added_beyond_the_vocabulary():
    out = byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    out.add_tokens([AddedToken("  ", normalized=False)])  # ordinary text: runs of spaces
    out.add_special_tokens([AddedToken("<|late|>", special=True)])
    return out


def llama_3():
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    pre = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    out = byte_bpe(pre)
    content = json.loads(out.to_str())
    content["model"]["ignore_merges"] = True  # a word that is in the vocabulary is one token
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def clip():
    pre = [pre_tokenizers.Split(Regex(CLIP), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    return byte_bpe(
        pre_tokenizers.Sequence(pre), normalizers.Sequence(steps), end_of_word_suffix="</w>", unk_token="<unk>"
    )


SPLIT = pre_tokenizers.WhitespaceSplit()
KINDS = {
    "gpt2": lambda: byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2-prefix": lambda: byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "llama-3": llama_3,
    "llama-2": llama_2,
    "clip": clip,
    "bert": wordpiece,
    "wordlevel": lambda: words(models.WordLevel(vocabulary(), "<unk>"), SPLIT),
    "wordpiece-split": lambda: words(models.WordPiece(vocabulary(), unk_token="<unk>"), SPLIT),
    "unigram-first": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "unigram-always": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "unigram-whole": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "t5": lambda: unigram(pre_tokenizers.Sequence([SPLIT, pre_tokenizers.Metaspace()]), normalizers.NFKC()),
    "strip": lambda: byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True), normalizers.Strip()),
    "added": added_beyond_the_vocabulary,
}
SENTENCE_PIECE = ("unigram", "bpe")


@pytest.fixture(scope="module", params=[*KINDS, *SENTENCE_PIECE, "bytes"])
def pair(request, tmp_path_factory):
    """Returns a tokenizer, and the library's function from a whole text to ids."""
    folder, kind = tmp_path_factory.mktemp("tokenizer"), request.param
    if kind == "bytes":
        return ByteTokenizer(), lambda text: list(text.encode())
    if kind in SENTENCE_PIECE:
        sentencepiece = pytest.importorskip("sentencepiece")
        (folder / "corpus.txt").write_text("\n".join(CORPUS))
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "corpus.txt"),
            model_prefix=str(folder / "m"),
            model_type=kind,
            vocab_size=45,
            control_symbols=["<pad>", "[MASK]", "<|endoftext|>", "<|odd|>"],
            byte_fallback=False,
            minloglevel=2,
        )
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))
        return load_tokenizer(folder / "m.model"), processor.encode
    model = KINDS[kind]()
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|odd|>"}))
    return load_tokenizer(folder / "tokenizer.json"), lambda text: model.encode(text, add_special_tokens=False).ids


def test_long_texts_have_the_tokens_of_the_whole_text(pair):
    """The library encodes the whole text at once; our pieces joined give the same tokens, at every place of a cut."""
    tokenizer, whole = pair
    separators = [" ", "\n", "\n\n", "\n ", " \n", "  ", "\r\n", "\t"]
    parts = np.stack([RNG.choice(WORDS, 45_000), RNG.choice(separators, 45_000)], 1).ravel()
    text = "".join(parts)
    assert len(text) > 3 << 16
    unbroken = "".join(RNG.choice([*"ACGT"], 70_000))  # nothing to cut at
    texts = ["", text, "one", unbroken, text[: 1 << 16], text[: (1 << 16) + 1]]
    for text, ids in zip(texts, tokenizer.encode(texts)):
        assert ids.dtype == np.int32 and ids.tolist() == whole(text)
    for text in (texts[1], ""):  # in blocks of random sizes
        ends = np.cumsum(RNG.integers(1, 1 << 17, 40))
        blocks = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)]) if a < len(text)]
        assert np.concatenate([*tokenizer.encode_blocks(blocks), [-1]]).tolist() == [*whole(text), -1]


@pytest.mark.parametrize("kind", ["gpt2", "gpt2-prefix", "llama-3", "clip", "bert", "t5", "llama-2"])
def test_long_texts_are_encoded_in_pieces(kind, tmp_path):
    """Long texts are cut where it changes nothing, so that they use all threads and little memory."""
    encoder = load(KINDS[kind](), tmp_path)._encoder
    text = "\n".join(RNG.choice(WORDS, 60_000))
    whole = list(itertools.chain(*encoder._pieces([text])))
    assert len(whole) == len(text) // (1 << 16) + 1
    blocks = [text[i : i + 10_000] for i in range(0, len(text), 10_000)]
    lists = list(encoder._pieces(blocks))
    assert list(itertools.chain(*lists)) == whole
    assert max(len(pieces) for pieces in lists) == 1  # a piece is encoded as soon as it is complete


def load(model, folder, **settings):
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder / "tokenizer.json")


def test_a_spelled_special_token_is_ordinary_text(pair):
    """No id of a special token comes from a text, except that of unknown characters."""
    tokenizer, _ = pair
    forbidden = {i for role, i in tokenizer.special_ids.items() if role != "unk"}
    for text in (*SPECIALS[1:], "<|late|>"):
        model = getattr(tokenizer, "_model", None)
        if model is not None and model.token_to_id(text) is not None:
            forbidden.add(model.token_to_id(text))
    forms = ("{}", "one {} leap", "one{}leap", "{}{}", " {} ")
    texts = [form.replace("{}", special) for form in forms for special in [*SPECIALS, "<|late|>"]]
    for text, ids in zip(texts, tokenizer.encode(texts)):
        assert len(ids) and not forbidden & set(ids.tolist()), text


@pytest.mark.parametrize("kind", ["gpt2", "llama-3", "added", "llama-2"])
def test_spelled_special_tokens_decode_to_themselves(kind, tmp_path):
    tokenizer = load(KINDS[kind](), tmp_path, eos_token="<|odd|>")
    text = "one <s> leap </s> <pad> [MASK] <|odd|> <unk>"
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids).strip() == text


def test_half_a_surrogate_pair_is_one_line(pair):
    for broken in ("\ud83d", "one \udc00 leap", "ok \ud83d\ud83d"):
        with pytest.raises(UserError, match=r"text 2: character \d+ is '\\u[0-9a-f]{4}', half of a surrogate pair"):
            pair[0].encode(["fine \U0001f600", broken])


def test_unusual_characters_are_encoded_as_the_library_does(pair):
    tokenizer, whole = pair
    for text in ("\ufeffone", "one\x00leap", "\r\none\r\n", "\U0001f600", "e\u0301", "\u2028", "\x85"):
        assert tokenizer.encode([text])[0].tolist() == whole(text), text
