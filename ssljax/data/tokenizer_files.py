"""Files of tokenizers: tokenizer.json, SentencePiece models, vocab.txt, vocab.json with merges.txt, and settings."""

import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ssljax.base.errors import UserError
from ssljax.base.files import read_json, replacing
from ssljax.data.sentence_piece import SentencePiece

if TYPE_CHECKING:
    import tokenizers

# Files next to a tokenizer that define its use: special tokens, side of padding, chat templates.
SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates",  # a folder
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", *SETTINGS)
# Read if there is no tokenizer.json. The tokenizer classes of `transformers` add special tokens; these files do not.
SENTENCE_PIECE = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")
_ROLES = ("pad", "bos", "eos", "mask", "unk", "cls", "sep")
# Special tokens by their usual names, for tokenizers whose files do not state them.
_NAMES = {
    "pad": ("<pad>", "[PAD]"),
    "bos": ("<bos>", "<s>", "<|startoftext|>", "<|begin_of_text|>"),
    "eos": ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>"),
    "mask": ("<mask>", "[MASK]"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
}
# Classes of `transformers` without special tokens by default.
_BARE_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
# Classes with other special tokens by default.
_DEFAULTS: dict[str, dict[str, str]] = {
    "CLIPTokenizer": dict.fromkeys(("pad", "eos", "unk"), "<|endoftext|>") | {"bos": "<|startoftext|>"},
    "GPT2Tokenizer": dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>"),
    "OPTTokenizer": dict.fromkeys(("bos", "eos", "unk"), "</s>") | {"pad": "<pad>"},
    "RobertaTokenizer": {
        **dict.fromkeys(("bos", "cls"), "<s>"),
        **dict.fromkeys(("eos", "sep"), "</s>"),
        **{role: f"<{role}>" for role in ("pad", "unk", "mask")},
    },
    "Qwen2Tokenizer": dict.fromkeys(("pad", "eos", "unk"), "<|endoftext|>"),
}
# model_type -> class of its tokenizer in `transformers`, for folders with a bare vocabulary.
_CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "esm": "EsmTokenizer",
    "gpt2": "GPT2Tokenizer",
    "opt": "OPTTokenizer",  # the name of GPT-2's class with other special tokens
    "roberta": "RobertaTokenizer",
    "bart": "RobertaTokenizer",
    "clip": "CLIPTokenizer",
    "openai-gpt": "OpenAIGPTTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
}
_SAME_CLASSES = {"DistilBert": "Bert", "Electra": "Bert", "Bart": "Roberta"}


def find_file(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the file of the tokenizer of a folder in the Hugging Face format; None if it has none of a known kind."""
    names = ["tokenizer.json", *SENTENCE_PIECE]
    kind = tokenizer_class(folder)
    if (folder / "merges.txt").is_file() and kind in _OF_MERGES:
        names.append("vocab.json")
    if kind in _OF_LINES or not kind:
        names.append("vocab.txt")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def open_file(path: pathlib.Path) -> Any:
    """Opens the tokenizer of a file, without padding and truncation.

    Args:
        path: a tokenizer.json of the `tokenizers` library, a SentencePiece model (`*.model`, read on first use), a
            vocab.txt, or a vocab.json with the merges.txt beside it. The kind of a bare vocabulary is given by the
            `tokenizer_class` of tokenizer_config.json or the `model_type` of config.json beside it.

    Raises:
        UserError: the file cannot be read, is damaged, or is a vocabulary of an unknown kind.
    """
    if path.suffix == ".model":
        return SentencePiece(path)
    if path.name in ("vocab.txt", "vocab.json", "merges.txt"):
        return _from_vocabulary(path)
    from tokenizers import Tokenizer

    try:
        model = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: not a tokenizer.json ({error})") from error
    return unpadded(model)


def unpadded(tokenizer: Any) -> Any:
    """Returns a copy without padding and truncation. A SentencePiece model, which has neither, is returned itself."""
    if isinstance(tokenizer, SentencePiece):
        return tokenizer
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def copy_files(names: Iterable[str], source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the named files and folders from `source` to `target`, as far as they exist."""
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).is_file():
            with replacing(target / name) as copy:
                shutil.copyfile(source / name, copy)


# Special tokens


def read_specials(folder: pathlib.Path, vocabulary: Collection[str]) -> dict[str, str]:
    """Returns {role: text} of the special tokens of a tokenizer, as far as they are in its vocabulary.

    The files of the folder state them (tokenizer_config.json, then special_tokens_map.json). A role that no file
    states follows from the class of the tokenizer, or from the usual names of special tokens.

    Args:
        folder: folder of the tokenizer.
        vocabulary: texts of all tokens.

    Raises:
        UserError: a file is damaged.
    """
    settings = [_settings(folder, name) for name in ("special_tokens_map.json", "tokenizer_config.json")]
    stated: dict[str, str | None] = {}
    for content in settings:
        stated |= {r: _text(content[f"{r}_token"]) for r in _ROLES if f"{r}_token" in content}
    kind = tokenizer_class(folder)
    usual = {role: next((n for n in names if n in vocabulary), None) for role, names in _NAMES.items()}
    defaults = {role: text for role, text in _DEFAULTS.get(kind, {}).items() if text in vocabulary}
    guessed = {} if kind in _BARE_CLASSES and any(stated.values()) else defaults or usual
    return {role: text for role, text in (guessed | stated).items() if text is not None and text in vocabulary}


def tokenizer_class(folder: pathlib.Path) -> str:
    """Returns the class of a folder's tokenizer in `transformers`, without "Fast"; "" if no file tells it."""
    stated = _settings(folder, "tokenizer_config.json").get("tokenizer_class")
    if stated:
        name = str(stated).removesuffix("Fast")
        stem = name.removesuffix("Tokenizer")
        return f"{_SAME_CLASSES.get(stem, stem)}Tokenizer" if name != stem else name
    return _CLASSES.get(str(_settings(folder, "config.json").get("model_type")), "")


def write_class(file: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes class and special tokens of a tokenizer file into the tokenizer_config.json of another folder.

    Nothing is written unless the class follows from the `model_type` of config.json, which is not copied.
    """
    settings, kind = _settings(file.parent, "tokenizer_config.json"), tokenizer_class(file.parent)
    if "tokenizer_class" in settings or not kind:
        return
    named = read_specials(file.parent, open_file(file).get_vocab(with_added_tokens=True))
    stated = {f"{role}_token": text for role, text in named.items()}
    kind = "GPT2Tokenizer" if kind == "OPTTokenizer" else kind
    content = {**settings, "tokenizer_class": kind, **stated}
    (folder / "tokenizer_config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def _text(value: Any) -> str | None:
    """Returns the text of a special token, which is given as a text or as {"content": text, ...}."""
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) and value else None


def _settings(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns the object in a JSON file of a folder; {} if the file does not exist."""
    path = folder / name
    return read_json(path) if path.is_file() else {}


# Bare vocabularies


def _from_vocabulary(path: pathlib.Path) -> "tokenizers.Tokenizer":
    """Builds the tokenizer of a vocab.txt, or of vocab.json and merges.txt, as `transformers` does."""
    folder = path.parent
    kind = tokenizer_class(folder) or ("BertTokenizer" if path.name == "vocab.txt" else "")
    builders = _OF_LINES if path.name == "vocab.txt" else _OF_MERGES
    if kind not in builders:
        found = f"tokenizer_class {kind!r}" if kind else "no tokenizer_class in tokenizer_config.json"
        raise UserError(
            f"{path}: {found}; the kind of this vocabulary must be one of {', '.join(builders)} (or save the tokenizer "
            "as tokenizer.json)"
        )
    settings = _settings(folder, "tokenizer_config.json")
    try:
        tokenizer, roles = builders[kind](folder, settings)
        return _with_specials(tokenizer, folder, settings, roles)
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception; settings of wrong kinds raise several types
        raise UserError(f"{path}: not a vocabulary of {kind}, or damaged settings beside it ({error})") from error


def _with_specials(
    tokenizer: "tokenizers.Tokenizer", folder: pathlib.Path, settings: dict[str, Any], roles: tuple[str, str]
) -> "tokenizers.Tokenizer":
    """Returns a tokenizer with its special tokens, and with those around a text.

    Args:
        tokenizer: the tokenizer.
        folder: its folder.
        settings: content of its tokenizer_config.json.
        roles: roles of the tokens before and after a text; "" for none.
    """
    from tokenizers import AddedToken, processors

    added = [(i, text) for text, i in _settings(folder, "added_tokens.json").items()]
    added += [(int(i), token["content"]) for i, token in settings.get("added_tokens_decoder", {}).items()]
    for i, text in sorted(set(added)):
        if tokenizer.token_to_id(text) is None and i == tokenizer.get_vocab_size():
            tokenizer.add_tokens([AddedToken(text, normalized=False)])
    named = read_specials(folder, tokenizer.get_vocab())
    known = settings.get("added_tokens_decoder", {}).values()
    texts = dict.fromkeys([*named.values(), *(t["content"] for t in known if t.get("special"))])
    vocabulary = tokenizer.get_vocab()
    # The mask of RoBERTa takes the space before it.
    tokenizer.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False, lstrip=text == "<mask>")
            for text in sorted((t for t in texts if t in vocabulary), key=vocabulary.__getitem__)
        ]
    )
    before, after = (named.get(role) for role in roles)
    if before or after:
        template = " ".join(filter(None, (before, "$A", after)))
        pairs = [(text, vocabulary[text]) for text in dict.fromkeys(filter(None, (before, after)))]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return tokenizer


def _bert(folder: pathlib.Path, settings: dict[str, Any]) -> tuple["tokenizers.Tokenizer", tuple[str, str]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    lines = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {line.removesuffix("\r"): i for i, line in enumerate(lines)}
    out = Tokenizer(models.WordPiece(vocabulary, unk_token=_text(settings.get("unk_token")) or "[UNK]"))
    out.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    out.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    out.decoder = decoders.WordPiece(prefix="##")
    return out, ("cls", "sep")


def _esm(folder: pathlib.Path, settings: dict[str, Any]) -> tuple["tokenizers.Tokenizer", tuple[str, str]]:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    out = Tokenizer(models.WordLevel({line.strip(): i for i, line in enumerate(lines)}, "<unk>"))
    out.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    out.add_tokens([AddedToken(line.strip(), normalized=False) for line in lines])  # residues stand without spaces
    return out, ("cls", "eos")


def _bpe(folder: pathlib.Path, **settings: Any) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer, models

    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges: Any = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    return Tokenizer(models.BPE(_settings(folder, "vocab.json"), merges, **settings))


def _byte_level(
    roles: tuple[str, str], folder: pathlib.Path, settings: dict[str, Any]
) -> tuple["tokenizers.Tokenizer", tuple[str, str]]:
    from tokenizers import decoders, pre_tokenizers

    out = _bpe(folder)
    out.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
    out.decoder = decoders.ByteLevel()
    return out, roles


def _gpt2(folder: pathlib.Path, settings: dict[str, Any]) -> tuple["tokenizers.Tokenizer", tuple[str, str]]:
    return _byte_level(("bos" if settings.get("add_bos_token") else "", ""), folder, settings)


def _clip(folder: pathlib.Path, settings: dict[str, Any]) -> tuple["tokenizers.Tokenizer", tuple[str, str]]:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    out = _bpe(folder, end_of_word_suffix="</w>", unk_token=_text(settings.get("unk_token")) or "<|endoftext|>")
    out.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = pre_tokenizers.Split(Regex(words), behavior="removed", invert=True)
    out.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    out.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)])
    return out, ("bos", "eos")


def _gpt1(folder: pathlib.Path, settings: dict[str, Any]) -> tuple["tokenizers.Tokenizer", tuple[str, str]]:
    from tokenizers import decoders, normalizers, pre_tokenizers

    out = _bpe(folder, end_of_word_suffix="</w>", unk_token=_text(settings.get("unk_token")) or "<unk>")
    out.normalizer = normalizers.BertNormalizer(lowercase=True)
    out.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    out.decoder = decoders.BPEDecoder(suffix="</w>")
    return out, ("", "")


def _qwen2(folder: pathlib.Path, settings: dict[str, Any]) -> tuple["tokenizers.Tokenizer", tuple[str, str]]:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    out = _bpe(folder)
    out.normalizer = normalizers.NFC()
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    out.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space") or False, use_regex=False),
        ]
    )
    out.decoder = decoders.ByteLevel()
    return out, ("", "")


_Builder = Callable[[pathlib.Path, dict[str, Any]], tuple["tokenizers.Tokenizer", tuple[str, str]]]
_OF_LINES: dict[str, _Builder] = {"BertTokenizer": _bert, "EsmTokenizer": _esm}
_OF_MERGES: dict[str, _Builder] = {
    "GPT2Tokenizer": _gpt2,
    "OPTTokenizer": functools.partial(_byte_level, ("bos", "")),
    "RobertaTokenizer": functools.partial(_byte_level, ("cls", "sep")),
    "CLIPTokenizer": _clip,
    "OpenAIGPTTokenizer": _gpt1,
    "Qwen2Tokenizer": _qwen2,
}
