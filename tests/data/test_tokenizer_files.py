"""Special tokens and bare vocabularies of tokenizer folders, beside the tokenizer classes of `transformers`."""

import functools
import json
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from ssljax.base.errors import UserError
from ssljax.data import load_split, load_tokenizer, open_tokenizer, save_tokenizer
from ssljax.data.tokenizer_files import find_file, open_file
from ssljax.data.tokenizers import _begins_word

RNG = np.random.default_rng(0)
WORDS = ["one", "giant", "leap", "for", "mankind", "small", "Step", "moon", "ünï", "12", "x==y", "don't"]
CORPUS = [" ".join(RNG.choice(WORDS, 40)) for _ in range(100)]
TEXTS = ["one giant leap", "Small  Step, for\nmankind! x==y 12 éa", "don't", "一 leap", ""]
ROLES = ("pad", "bos", "eos", "mask", "unk", "cls", "sep")


def merges(specials, suffix=""):
    """Returns the vocabulary and the merges of a byte-level BPE."""
    settings = {"end_of_word_suffix": suffix} if suffix else {}
    model = tokenizers.Tokenizer(models.BPE(**settings))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=specials, show_progress=False, **settings
    )
    model.train_from_iterator([text.lower() if suffix else text for text in CORPUS], trainer)
    content = json.loads(model.to_str())["model"]
    return {"vocab": content["vocab"], "merges": [tuple(pair) for pair in content["merges"]]}


def pieces(specials):
    model = tokenizers.Tokenizer(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False)
    model.train_from_iterator(CORPUS, trainer)
    return {"vocab": [tuple(pair) for pair in json.loads(model.to_str())["model"]["vocab"]]}


def word_pieces():
    letters = "abcdefghijklmnopqrstuvwxyz=!,"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{x}" for x in letters)]
    return {"vocab": {text: i for i, text in enumerate(dict.fromkeys(names))}}


def test_marks_of_words():
    for vocabulary, settings, expected in (
        (models.WordPiece({"[UNK]": 0, "un": 1, "##seen": 2, ",": 3}, unk_token="[UNK]"), None, [1, 1, 0, 1]),
        (models.Unigram([("<unk>", 0.0), ("\u2581a", -1.0), ("b", -2.0)], 0), pre_tokenizers.Metaspace(), [0, 1, 0]),
        (models.WordLevel({"a": 0, "b": 1}, "a"), pre_tokenizers.WhitespaceSplit(), [1, 1]),
        (models.BPE({"a</w>": 0, "b": 1}, [], end_of_word_suffix="</w>"), pre_tokenizers.ByteLevel(), None),
        (models.BPE({"a": 0, "\u0120b": 1, "\u010a": 2, "\u00e9": 3}, []), pre_tokenizers.ByteLevel(), [0, 1, 1, 0]),
    ):
        model = tokenizers.Tokenizer(vocabulary)
        if settings is not None:
            model.pre_tokenizer = settings
        begins = _begins_word(json.loads(model.to_str()))
        by_id = sorted(model.get_vocab().items(), key=lambda item: item[1])
        assert (None if begins is None else [int(begins(text)) for text, _ in by_id]) == expected


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
OPT = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}
# name -> (class of transformers, its vocabulary, its settings)
CLASSES = {
    "bert": ("BertTokenizer", word_pieces, {}),
    "bert-cased": ("BertTokenizer", word_pieces, {"do_lower_case": False}),
    "roberta": ("RobertaTokenizer", lambda: merges(ROBERTA), {}),
    "roberta-prefix": ("RobertaTokenizer", lambda: merges(ROBERTA), {"add_prefix_space": True}),
    "gpt2": ("GPT2Tokenizer", lambda: merges(["<|endoftext|>"]), {}),
    "opt": ("GPT2Tokenizer", lambda: merges(ROBERTA[:4]), OPT),
    "qwen2": ("Qwen2Tokenizer", lambda: merges(["<|endoftext|>"]), {}),
    "clip": ("CLIPTokenizer", lambda: merges(["!", "<|startoftext|>", "<|endoftext|>"], "</w>"), {}),
    "openai-gpt": ("OpenAIGPTTokenizer", lambda: merges(["<unk>"], "</w>"), {}),
    "xlnet": (
        "XLNetTokenizer",
        lambda: pieces(["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]),
        {},
    ),
    "t5": ("T5Tokenizer", lambda: pieces(["<pad>", "</s>", "<unk>"]), {"extra_ids": 4}),
    "albert": ("AlbertTokenizer", lambda: pieces(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]), {}),
    "odd": (
        "GPT2Tokenizer",
        lambda: merges(["<|begin|>", "<|stop|>", "<|fill|>", "</s>", "<pad>"]),
        {"bos_token": "<|begin|>", "eos_token": "<|stop|>", "unk_token": "<|stop|>", "pad_token": "<|fill|>"},
    ),
}
DECODERS = ("gpt2", "opt", "qwen2", "openai-gpt", "odd")
TYPES = {"bert-cased": "bert", "roberta-prefix": "roberta"}


@functools.cache  # two trainings can give two vocabularies
def vocabulary(name):
    return CLASSES[name][1]()


@pytest.fixture(scope="module", params=CLASSES)
def theirs(request):
    """Returns the name of a case, and the tokenizer of `transformers`."""
    transformers = pytest.importorskip("transformers")
    kind, _, settings = CLASSES[request.param]
    return request.param, getattr(transformers, kind)(**vocabulary(request.param), **settings)


def check(theirs, ours, raw, decoder=False):
    """Compares special tokens, ids, ids with special tokens, and rows of documents."""
    want = {role: getattr(theirs, f"{role}_token_id") for role in ROLES}
    assert ours.special_ids == {role: i for role, i in want.items() if i is not None}
    for text in TEXTS:
        plain = theirs(text, add_special_tokens=False).input_ids
        marked = theirs(text).input_ids
        assert ours.encode([text])[0].tolist() == plain == raw.encode(text, add_special_tokens=False).ids
        assert raw.encode(text).ids == marked
        # A decoder's file adds no end to a prompt; a text for training has one.
        after = (want["eos"],) if decoder and want["eos"] is not None else ()
        before = (want["bos"],) if decoder and want["bos"] is not None and marked == plain else ()
        assert [*ours.affixes.before, *plain, *ours.affixes.after] == [*before, *marked, *after]


def test_saved_folders(theirs, tmp_path):
    name, theirs = theirs
    theirs.save_pretrained(tmp_path)
    file = find_file(tmp_path)
    assert file.name == "tokenizer.json"
    check(theirs, load_tokenizer(file), open_file(file), name in DECODERS)


def vocabulary_folder(name, folder, **settings):
    """Writes the files of old folders: the bare vocabulary, and settings."""
    content = vocabulary(name)
    folder.mkdir(exist_ok=True)
    if name.startswith("bert"):
        (folder / "vocab.txt").write_text("".join(f"{text}\n" for text in content["vocab"]), encoding="utf-8")
    else:
        (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in content["merges"])]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for file, values in settings.items():
        (folder / f"{file}.json").write_text(json.dumps(values))
    return folder


BARE = [name for name in CLASSES if name not in ("xlnet", "t5", "albert")]


@pytest.mark.parametrize("stated", ["tokenizer_class", "model_type"])
@pytest.mark.parametrize("theirs", BARE, indirect=True)
def test_bare_vocabularies(theirs, stated, tmp_path):
    name, theirs = theirs
    kind, _, settings = CLASSES[name]
    if name == "odd" and stated == "model_type":
        stated = "tokenizer_class"
    files = {"tokenizer_config": settings | ({"tokenizer_class": f"{kind}Fast"} if stated == "tokenizer_class" else {})}
    if stated == "model_type":
        files["config"] = {"model_type": TYPES.get(name, name)}
    folder = vocabulary_folder(name, tmp_path / "bare", **files)
    file = find_file(folder)
    assert file.name == ("vocab.txt" if name.startswith("bert") else "vocab.json")
    check(theirs, load_tokenizer(file), open_file(file), name in DECODERS)


def test_a_bare_vocabulary_trains_a_run(config, tmp_path):
    """A folder is a path of a tokenizer; what the workdir stores needs no file of the folder."""
    theirs = pytest.importorskip("transformers").BertTokenizer(**word_pieces())
    folder = vocabulary_folder("bert", tmp_path / "bare")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one giant leap"}))
    source = {"source": f"jsonl:{tmp_path}/a.jsonl", "seq_len": 8, "mode": "documents"}
    data = config(**source, tokenizer={"name": "file", "path": str(folder)})
    tokens = load_split(data, "train")["tokens"][0].tolist()
    want = theirs("one giant leap").input_ids
    assert tokens == want + [0] * (8 - len(want))
    (tmp_path / "run").mkdir()
    stored = save_tokenizer(data, tmp_path / "run")
    ours = open_tokenizer(data)
    shutil.rmtree(folder)
    assert stored.name == "tokenizer.json"
    assert load_tokenizer(stored).special_ids == ours.special_ids and load_tokenizer(stored).affixes == ours.affixes


@pytest.mark.parametrize("name", ["gpt2", "opt", "clip", "roberta", "bert"])
def test_what_a_workdir_stores_has_the_special_tokens_of_the_folder(config, name, tmp_path):
    """The model_type of the folder is not stored, and the folder may be gone."""
    folder = vocabulary_folder(name, tmp_path / "bare", config={"model_type": name})
    data = config(source="builtin:digits", seq_len=8, tokenizer={"name": "file", "path": str(folder)})
    before = open_tokenizer(data)
    (tmp_path / "run").mkdir()
    stored = load_tokenizer(save_tokenizer(data, tmp_path / "run"))
    assert stored.special_ids == before.special_ids and stored.affixes == before.affixes
    assert len(before.special_ids) >= 3


def test_residues_of_esm(tmp_path):
    transformers = pytest.importorskip("transformers")
    names = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "esm"}))
    theirs, ours = transformers.EsmTokenizer(str(tmp_path / "vocab.txt")), load_tokenizer(find_file(tmp_path))
    assert ours.special_ids == {"pad": 1, "cls": 0, "eos": 2, "unk": 3, "mask": 32}
    for text in ("MKTAYIAKQR", "M K T", "MKJT", "LAG.V-S"):
        ids = theirs(text).input_ids
        assert [*ours.affixes.before, *ours.encode([text])[0].tolist(), *ours.affixes.after] == ids


def word_level(*specials):
    model = tokenizers.Tokenizer(models.WordLevel({t: i for i, t in enumerate([*specials, *WORDS])}, specials[0]))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens([AddedToken(text, special=True) for text in specials])
    return model


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({}, {"bos": 1, "eos": 2}),  # by their usual names
        ({"tokenizer_config": {"eos_token": "<|odd|>"}}, {"eos": 3}),
        ({"tokenizer_config": {"eos_token": {"content": "<|odd|>", "lstrip": False}, "bos_token": None}}, {"eos": 3}),
        ({"special_tokens_map": {"eos_token": "<|odd|>", "pad_token": "<|odd|>"}}, {"eos": 3, "pad": 3}),
        (
            {
                "tokenizer_config": {"eos_token": "<s>"},
                "special_tokens_map": {"eos_token": "</s>", "sep_token": "</s>"},
            },
            {"eos": 1, "sep": 2},  # tokenizer_config.json goes first
        ),
        ({"tokenizer_config": {"eos_token": "<|missing|>", "bos_token": "<s>"}}, {"bos": 1}),
    ],
)
def test_special_tokens_are_read_from_the_files_of_the_folder(files, want, tmp_path):
    word_level("[UNK]", "<s>", "</s>", "<|odd|>").save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        bare = {"tokenizer_class": "PreTrainedTokenizerFast"} if name == "tokenizer_config" else {}
        (tmp_path / f"{name}.json").write_text(json.dumps(content | bare))
    if "tokenizer_config" not in files and files:
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    found = load_tokenizer(tmp_path / "tokenizer.json").special_ids
    assert found == want if files else found == want | {"unk": 0}


def test_an_unknown_end_of_text_is_said(tmp_path, caplog):
    word_level("[UNK]", "<|odd|>").save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    (line,) = caplog.messages
    assert "no end of a text is known" in line and "tokenizer.json" in line and "\n" not in line
    assert ours.affixes == ((), ()) and ours.pad == 0
    caplog.clear()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|odd|>"}')
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert (
        not caplog.messages and ours.special_ids["eos"] == ours.pad == 1
    )  # padded with the end token, not with word 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "PhiTokenizer"}'},
            "'PhiTok",
        ),
        ({"vocab.json": "{}", "merges.txt": ""}, "no tokenizer_class"),
        ({"vocab.json": "{", "merges.txt": "", "config.json": '{"model_type": "gpt2"}'}, "not JSON"),
        (
            {"vocab.json": "[]", "merges.txt": "", "config.json": '{"model_type": "gpt2"}'},
            "not a JSON object but list",
        ),
        (
            {"vocab.json": "{}", "merges.txt": "a b", "config.json": '{"model_type": "gpt2"}'},
            "not a vocabulary of GPT2",
        ),
        ({"vocab.json": "{}", "config.json": '{"model_type": "gpt2"}'}, "merges.txt"),
        ({"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": "[]"}, "not a JSON object"),
        # Before: a traceback of each.
        ({"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": "[" * 100_000}, "not JSON"),
        (
            {
                "vocab.json": "{}",
                "merges.txt": "",
                "tokenizer_config.json": '{"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {"x": 3}}',
            },
            "or damaged settings",
        ),
    ],
)
def test_damaged_vocabularies_are_one_line(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path / "vocab.json")
    assert "\n" not in str(error.value) and str(error.value).startswith("data.tokenizer.path: ")


def test_a_text_without_tokens_is_one_line(tmp_path):
    """Before: a traceback, even for a tokenizer that has all words of the texts."""
    model = tokenizers.Tokenizer(models.WordLevel({"one": 0, "leap": 1}, "[UNK]"))  # which the vocabulary lacks
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert ours.encode(["leap one"])[0].tolist() == [1, 0]
    with pytest.raises(UserError, match=r"^data\.tokenizer: cannot encode a text \(.*UNK"):
        ours.encode(["moon"])


def test_padding_and_truncation_of_a_file_are_off(tmp_path):
    model = word_level("[UNK]", "</s>")
    model.enable_padding(length=128)
    model.enable_truncation(4)
    model.save(str(tmp_path / "tokenizer.json"))
    assert len(open_file(tmp_path / "tokenizer.json").encode("one giant leap for mankind").ids) == 5
    assert len(open_file(tmp_path / "tokenizer.json").encode("one").ids) == 1
