"""Tokenizers, the token cache on disk, and examples of text."""

import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers

from ssljax.base.errors import UserError
from ssljax.data import (
    DataSpec,
    dataset,
    describe,
    load_split,
    load_tokenizer,
    open_data,
    open_tokenizer,
    pin_tokenizer,
    save_tokenizer,
)
from ssljax.data.files import _count_lines, _lines_of
from ssljax.data.text import cut, pack
from ssljax.data.tokenizer_training import _pieces, _Words
from ssljax.data.tokenizers import ByteTokenizer

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "Delta",
    "Ünï",
    "cödé",
    "epsilon's",
    "don't",
    "123",
    "==",
    "(x)",
    "eta\n\n",
    "",
    "   iota",
]
RNG = np.random.default_rng(0)
DOCUMENTS = [" ".join(RNG.choice(WORDS, n)) + "\n" for n in (3, 40, 0, 7, 90, 15, 1, 60)]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in DOCUMENTS))
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "alpha gamma unseen words"}))
    return f"jsonl:{tmp_path}/{{split}}.jsonl"


def flat(documents=DOCUMENTS):
    """Returns the tokens of the byte corpus: the bytes of each text and the end token, 258."""
    return np.array([token for text in documents for token in [*text.encode(), 258]])


# ---- tokenizers


@hypothesis.given(st.text())
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    (ids,) = tokenizer.encode([text])
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode([257, *ids, 258]) == text


def test_saving_a_tokenizer_copies_its_settings(config, corpus, tmp_path):
    """The files and folders of settings next to a tokenizer file are copied."""
    made = save_tokenizer(config(source=corpus, seq_len=8, tokenizer={"name": "bpe", "vocab_size": 300}), tmp_path)
    source, folder = tmp_path / "source", tmp_path / "folder"
    (source / "additional_chat_templates").mkdir(parents=True)
    folder.mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    made.rename(source / "tokenizer.json")
    named = {"name": "file", "path": str(source / "tokenizer.json")}
    assert save_tokenizer(config(source=corpus, seq_len=8, tokenizer=named), folder).stat().st_size
    assert (folder / "additional_chat_templates" / "tools.jinja").read_text() == "{{ messages }}"


def test_a_saved_byte_tokenizer_is_equal(config, corpus, tmp_path):
    data = config(source=corpus, seq_len=8)
    loaded = load_tokenizer(save_tokenizer(data, tmp_path))
    assert loaded.vocab_size == 260 and loaded.special_ids == ByteTokenizer().special_ids
    np.testing.assert_array_equal(loaded.byte_lengths, ByteTokenizer().byte_lengths)
    texts = [*DOCUMENTS, "".join(map(chr, range(1, 256)))]
    for text, ids in zip(texts, loaded.encode(texts)):
        assert ids.tolist() == list(text.encode())
        assert loaded.decode(ids) == text


def test_bpe(config, corpus, tmp_path):
    data = config(source=corpus, seq_len=8, tokenizer={"name": "bpe", "vocab_size": 300})
    tokenizer = open_tokenizer(data)
    assert tokenizer.vocab_size == 300
    assert tokenizer.special_ids == {"pad": 0, "bos": 1, "mask": 2, "eos": 3}
    for text in [*DOCUMENTS, "any text at all: 漢字\t☃\r\n"]:
        (ids,) = tokenizer.encode([text])
        assert tokenizer.decode(ids) == text
        assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert len(tokenizer.encode([DOCUMENTS[4]])[0]) < 0.7 * len(DOCUMENTS[4].encode())
    # Saved in a workdir and used by another run.
    path = save_tokenizer(data, tmp_path)
    again = config(source=corpus, seq_len=8, tokenizer={"name": "file", "path": str(path)})
    assert path == tmp_path / "tokenizer.json" and open_tokenizer(again).fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(load_split(again, "train")["tokens"], load_split(data, "train")["tokens"])


def test_wordpiece(config, corpus):
    data = config(source=corpus, seq_len=8, tokenizer={"name": "wordpiece", "vocab_size": 280, "lowercase": True})
    tokenizer = open_tokenizer(data)
    assert tokenizer.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    (ids,) = tokenizer.encode(["Alpha BETA"])
    assert tokenizer.decode(ids) == "alpha beta"
    assert tokenizer.byte_lengths is None
    assert describe(data).vocab_size == tokenizer.vocab_size <= 280


@pytest.mark.parametrize("kind", ["bytes", "bpe", "wordpiece"])
def test_words_begin_where_the_text_has_them(config, corpus, kind):
    data = config(source=corpus, seq_len=8, tokenizer={"name": kind, "vocab_size": 300, "lowercase": kind != "bytes"})
    tokenizer, spec = open_tokenizer(data), describe(data)
    begins = spec.begins_word()
    assert begins.shape == (tokenizer.vocab_size,) and begins[list(tokenizer.special_ids.values())].all()
    np.testing.assert_array_equal(begins, tokenizer.word_starts)
    np.testing.assert_array_equal(DataSpec.from_json(spec.to_json()).begins_word(), begins)
    for text in [" ".join(DOCUMENTS), "don't stop\n a\tb, c d"]:
        (ids,) = tokenizer.encode([text.lower()])
        words = [tokenizer.decode(word) for word in np.split(ids, np.flatnonzero(begins[ids])) if len(word)]
        if kind == "wordpiece":  # punctuation marks are words of their own
            assert len(words) == len(re.findall(r"[^\W_]+|[^\w\s]|_", text))
            continue
        assert "".join(words) == text.lower()
        assert all(word[0].isspace() for word in words[1:]) and not any(re.search(r"\S\s", word) for word in words)
    with pytest.raises(ValueError, match="word_starts has 8 bits"):
        DataSpec.from_json(dataclasses.replace(spec, word_starts="ff").to_json())


def test_a_tokenizer_is_trained_on_the_training_split_only(config, corpus, tmp_path):
    data = config(source=corpus, seq_len=4, tokenizer={"name": "bpe", "vocab_size": 300})
    before = open_tokenizer(data).fingerprint
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "quux " * 5000}))
    load_split(data, "test")
    assert open_tokenizer(data).fingerprint == before
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "quux " * 5000}))
    assert open_tokenizer(data).fingerprint != before


def test_training_is_deterministic(config, corpus, tmp_path_factory):
    found = set()
    for _ in range(3):
        cache = str(tmp_path_factory.mktemp("other"))
        for kind in ("bpe", "wordpiece"):
            tokenizer = {"name": kind, "vocab_size": 300}
            found.add(
                open_tokenizer(config(source=corpus, seq_len=4, cache_dir=cache, tokenizer=tokenizer)).fingerprint
            )
    assert len(found) == 2


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_cuts_of_long_texts_change_no_token(config, corpus, kind):
    text = "".join(RNG.choice([*WORDS, "\n", "\n\n", "\n ", " \n"], 4000))
    pieces = list(_pieces([text], 300))
    assert len(pieces) > 10 and "".join(pieces) == text
    tokenizer = open_tokenizer(config(source=corpus, seq_len=4, tokenizer={"name": kind, "vocab_size": 400}))
    whole = tokenizer._model.encode(text, add_special_tokens=False).ids
    assert np.concatenate(tokenizer.encode(pieces)).tolist() == whole


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    blocks=st.lists(st.text(st.sampled_from("ab\r\n\x0b\x1c\x85\u2028"), max_size=5), max_size=8),
    bounds=st.tuples(st.integers(0, 12), st.integers(0, 12)),
)
def test_lines_of_a_text_in_blocks_are_those_of_the_whole_text(blocks, bounds):
    text = "".join(blocks)
    lines = text.splitlines(keepends=True)
    assert _count_lines(iter(blocks)) == len(lines)
    assert "".join(_lines_of(iter(blocks), slice(*bounds))) == "".join(lines[slice(*bounds)])


@pytest.mark.parametrize("kind", ["bytes", "bpe", "wordpiece"])
@pytest.mark.parametrize("split", ["train", "train[10%:60%]"])
def test_a_text_larger_than_a_block_has_the_same_tokens(config, tmp_path, monkeypatch, kind, split):
    """One document that is read in blocks equals the same document read as a whole: tokenizer, tokens and bytes."""
    text = "\ufeff" + "".join(RNG.choice([*WORDS, "é", " ", "\n", "\r\n"], 20_000))
    found = []
    for size, name in ((1 << 23, "whole"), (1 << 12, "blocks"), (1 << 12, "blocks.gz")):
        place = tmp_path / name
        place.mkdir()
        if name.endswith(".gz"):
            (place / "big.txt.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (place / "big.txt").write_bytes(text.encode())
        (place / "small.txt").write_text("and a short one")
        monkeypatch.setattr("ssljax.data.files._CHARACTERS", size)
        tokenizer = {"name": kind, "vocab_size": 300}
        cache = str(tmp_path / f"cache-{name}")
        data = config(source=f"text:{place}/*", split=split, seq_len=8, tokenizer=tokenizer, cache_dir=cache)
        found.append((load_split(data, split)["tokens"].tolist(), describe(data).bytes_per_token))
    assert found[1] == found[0] == found[2]


# ---- examples


@pytest.mark.parametrize("overlap", [0, 1, 5])
def test_windows(config, corpus, overlap):
    data = config(source=corpus, seq_len=16, overlap=overlap)
    tokens, stride = flat(), 16 - overlap
    expected = [tokens[i : i + 16] for i in range(0, len(tokens) - 15, stride)]
    split = load_split(data, "train")
    np.testing.assert_array_equal(split["tokens"], expected)
    np.testing.assert_array_equal(split["id"], np.arange(len(expected)))
    assert split.byte_lengths[split["tokens"]].sum() == sum((window < 256).sum() for window in expected)
    spec = describe(data)
    assert spec.size == len(expected) and spec.vocab_size == 260 and spec.max_len == 16
    assert spec.bytes_per_token == sum(len(d.encode()) for d in DOCUMENTS) / len(tokens)
    batch = open_data(data, 4).batch(2)
    np.testing.assert_array_equal(batch["tokens"], split["tokens"][batch["id"]])


def test_packed(config, corpus):
    data = config(source=corpus, seq_len=32, mode="packed")
    split = load_split(data, "train")
    pieces = []
    for tokens, segments, positions in zip(split["tokens"], split["segment_ids"], split["positions"]):
        real = segments > 0
        assert (tokens[~real] == 256).all() and (positions[~real] == 0).all()
        assert (np.diff(real.astype(int)) <= 0).all()  # padding is at the end
        for segment in range(1, segments.max() + 1):
            selected = segments == segment
            np.testing.assert_array_equal(positions[selected], np.arange(selected.sum()))
            assert (np.diff(np.flatnonzero(selected)) == 1).all()
            pieces.append(tuple(tokens[selected]))
    expected = []
    for document in DOCUMENTS:
        tokens = [*document.encode(), 258]
        expected += [tuple(tokens[i : i + 32]) for i in range(0, len(tokens), 32)]
    assert sorted(pieces) == sorted(expected)
    assert split.byte_lengths[split["tokens"]].sum() == (flat() < 256).sum()
    spec = describe(data)
    assert spec.tokens == len(flat())
    batch = open_data(data, 3).batch(5)
    np.testing.assert_array_equal(batch["tokens"], split["tokens"][batch["id"]])


@pytest.mark.parametrize("split", ["train", "train[:60%]"])
@pytest.mark.parametrize("mode", ["windows", "packed", "documents"])
def test_tokens_are_counted_a_block_of_rows_at_a_time(config, corpus, monkeypatch, mode, split):
    data = config(source=corpus, seq_len=32, mode=mode, split=split)
    rows = load_split(data, split)
    monkeypatch.setattr(dataset, "_BLOCK", 2)
    assert describe(data).tokens == (rows["tokens"] != 256).sum()


@hypothesis.given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 40))
def test_packed_rows_fit_and_have_little_padding(lengths, width):
    rows = pack(np.array(lengths, np.int64), width)
    used = np.bincount(rows, weights=lengths) if lengths else np.zeros(0)
    assert (used <= width).all() and (used > 0).all()
    assert len(used) <= 11 / 9 * np.ceil(sum(lengths) / width) + 4
    if len(used) > 1:  # no two rows could be joined
        assert np.sort(used)[:2].sum() > width


@hypothesis.given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 9))
def test_cut(sizes, width):
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    starts, lengths = cut(ends, width)
    expected = [(s, min(width, b - s)) for a, b in itertools.pairwise(ends) for s in range(a, b, width)]
    assert list(zip(starts, lengths)) == expected


@pytest.mark.parametrize("kind", ["bytes", "wordpiece"])
def test_documents(config, corpus, kind):
    tokenizer = {"name": kind, "vocab_size": 280}
    data = config(source=corpus, seq_len=24, mode="documents", tokenizer=tokenizer)
    made = open_tokenizer(data)
    first, last = (made.special_ids[k] for k in (("bos", "eos") if kind == "bytes" else ("cls", "sep")))
    split = load_split(data, "train")
    assert len(split["id"]) == len(DOCUMENTS)
    for i, ids in enumerate(made.encode(DOCUMENTS)):
        expected = [first, *ids[:22], last]
        filled = 24 - len(expected)
        assert split["tokens"][i].tolist() == expected + [made.special_ids["pad"]] * filled
        assert split["segment_ids"][i].tolist() == [1] * len(expected) + [0] * filled
        assert split["positions"][i].tolist() == [*range(len(expected)), *[0] * filled]
    for key, values in made.encode_rows(DOCUMENTS, 24).items():  # prompts have the form of the data
        np.testing.assert_array_equal(values, split[key])
    assert made.encode_rows([], 24)["tokens"].shape == (0, 24)


# ---- the cache


def test_the_cache_is_built_once(config, corpus, monkeypatch):
    data = config(source=corpus, seq_len=8)
    first = load_split(data, "train")["tokens"]
    monkeypatch.setattr(ByteTokenizer, "encode", lambda *_: pytest.fail("tokenised again"))
    np.testing.assert_array_equal(load_split(data, "train")["tokens"], first)
    # The token cache does not depend on the sequence length.
    assert load_split(config(source=corpus, seq_len=4), "train")["tokens"].shape == (
        2 * len(first) + len(flat()) // 4 % 2,
        4,
    )


def test_changed_files_are_read_again(config, corpus, tmp_path):
    data = config(source=corpus, seq_len=4)
    before = load_split(data, "train")["tokens"]
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "something else"}))
    after = load_split(data, "train")["tokens"]
    assert before.shape != after.shape and bytes(after[0].tolist()) == b"some"


def test_a_killed_build_leaves_no_cache(config, corpus, monkeypatch):
    """After kill -9 during tokenisation no cache exists; the next run builds it and removes the remains."""
    data = config(source=corpus, seq_len=8)
    cache = pathlib.Path(os.environ["SSLJAX_CACHE"])
    script = f"""
        import os, signal
        from ssljax.data import DataConfig, describe, text
        text._BATCH_CHARACTERS = 20  # several groups
        encode, calls = text.Tokenizer, []
        from ssljax.data.tokenizers import ByteTokenizer
        whole = ByteTokenizer.encode
        def encode(self, texts):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(self, texts)
        ByteTokenizer.encode = encode
        describe(DataConfig(source={corpus!r}, seq_len=8))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [p for p in cache.iterdir() if p.is_dir()]
    assert len(left) == 1 and ".tmp-" in left[0].name and (left[0] / "tokens.bin").exists()
    np.testing.assert_array_equal(load_split(data, "train")["tokens"].ravel(), flat()[: len(flat()) // 8 * 8])
    assert not list(cache.glob("*.tmp-*"))


def test_a_failed_build_leaves_no_cache(config, corpus, monkeypatch):
    data = config(source=corpus, seq_len=8)

    def fail(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(ByteTokenizer, "encode", fail)
    with pytest.raises(RuntimeError, match="no"):
        describe(data)
    assert not [p for p in pathlib.Path(os.environ["SSLJAX_CACHE"]).iterdir() if p.is_dir()]


def test_concurrent_processes_build_one_cache(config, corpus):
    data = config(source=corpus, seq_len=8, tokenizer={"name": "bpe", "vocab_size": 300})
    tokenizer = "TokenizerConfig(name='bpe', vocab_size=300)"
    script = "from ssljax.data import *; print(describe(DataConfig(source={!r}, seq_len=8, tokenizer={})).size)"
    command = [sys.executable, "-c", script.format(corpus, tokenizer)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sizes = {process.communicate()[0].strip() for process in running}
    assert sizes == {str(describe(data).size)}
    assert len([p for p in pathlib.Path(os.environ["SSLJAX_CACHE"]).iterdir() if p.is_dir()]) == 2


def test_a_changed_file_with_the_same_size_and_time_is_read_again(config, tmp_path):
    """Also a tokenizer trained on it, and a tokenizer file that is replaced in place."""
    file = tmp_path / "a.txt"
    data = config(source=f"text:{file}", seq_len=8)
    trained = config(source=f"text:{file}", seq_len=8, tokenizer={"name": "bpe", "vocab_size": 300})
    found = []
    for text in ("first text, first", "other text, other"):
        file.write_text(text)
        os.utime(file, ns=(10**18, 10**18))
        found.append((bytes(load_split(data, "train")["tokens"][0].tolist()), open_tokenizer(trained).fingerprint))
    assert [text for text, _ in found] == [b"first te", b"other te"] and found[0][1] != found[1][1]

    path = str(tmp_path / "tokenizer.json")
    named = config(source=f"text:{file}", seq_len=4, mode="documents", tokenizer={"name": "file", "path": path})
    tokens = []
    for order in (1, -1):
        vocabulary = {text: i for i, text in enumerate(["[UNK]", *["other", "text,"][::order]])}
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
        model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        model.save(path)
        os.utime(path, ns=(10**18, 10**18))
        tokens.append(load_split(named, "train")["tokens"][0].tolist())
    assert tokens == [[1, 2, 1, 0], [2, 1, 2, 0]]


def test_equal_files_share_a_cache(config, tmp_path):
    """The name of a cache is a hash of the content, not of times."""
    file = tmp_path / "a.txt"
    data = config(source=f"text:{file}", seq_len=8)
    for _ in range(2):
        file.write_text("some text, some")
        load_split(data, "train")
    assert len([p for p in pathlib.Path(os.environ["SSLJAX_CACHE"]).iterdir() if p.is_dir()]) == 1


def test_a_pinned_tokenizer_stays_as_it_is(config, corpus, tmp_path):
    """It is not trained again when the training files grow, and outlives its own file."""
    path = save_tokenizer(config(source=corpus, seq_len=8, tokenizer={"name": "bpe", "vocab_size": 300}), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<bos>"}')
    content = path.read_bytes()
    for named in ({"name": "bpe", "vocab_size": 300}, {"name": "file", "path": str(path)}):
        path.write_bytes(content)
        data = config(source=corpus, seq_len=8, tokenizer=named)
        before, pinned = open_tokenizer(data), pin_tokenizer(data)
        with (tmp_path / "train.jsonl").open("a") as file:
            file.write("\n" + json.dumps({"text": "quux " * 5000}))
        path.write_text("{}")
        again = open_tokenizer(pinned)
        assert again.fingerprint == before.fingerprint and again.special_ids == before.special_ids
        assert pin_tokenizer(pinned) == pinned
    bytes_ = config(source=corpus, seq_len=8)
    assert pin_tokenizer(bytes_) == bytes_


# ---- training on long words


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@pytest.mark.parametrize(
    "text",
    ["".join(RNG.choice([*"ACGT"], 200_000)), " " * 200_000, "=" * 200_000, "_-" * 100_000, "0123456789" * 20_000],
    ids=["dna", "spaces", "signs", "mixed", "digits"],
)
def test_training_on_a_long_word_is_quick(config, tmp_path, caplog, kind, text):
    """A word of 200,000 characters takes a few seconds, and the cuts are said in one line."""
    (tmp_path / "a.txt").write_text(f"one giant leap {text} for mankind")
    caplog.set_level("INFO", "ssljax")
    data = config(source=f"text:{tmp_path}/a.txt", seq_len=8, tokenizer={"name": kind, "vocab_size": 4096})
    start = time.monotonic()
    tokenizer = open_tokenizer(data)
    assert time.monotonic() - start < 10
    lines = [line for line in caplog.messages if "are cut for the training" in line]
    one_word = kind == "bpe" or "A" in text or "0" in text  # BERT splits at every sign
    assert len(lines) == one_word and all("words of more than 256 characters" in line for line in lines)
    (ids,) = tokenizer.encode([text])
    if kind == "bpe":
        assert tokenizer.decode(ids) == text and len(ids) < len(text) / 3


@hypothesis.given(
    st.lists(st.tuples(st.sampled_from(["A", "é", "1", "_", "-", " ", "\n", "。", "の"]), st.integers(1, 700)))
)
def test_words_are_cut_only_where_they_are_too_long(runs):
    text = "".join(letter * count for letter, count in runs)
    words = _Words("bpe")
    parts = words.cut(text)
    assert "".join(parts) == text and len(parts) == words.cuts + 1
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    spans = [end - start for part in parts for _, (start, end) in split(part)]
    assert max(spans, default=0) <= 257  # with the space before it


@pytest.mark.parametrize("megabytes", [4, pytest.param(100, marks=pytest.mark.full)])
def test_a_long_line(config, tmp_path, megabytes):
    words = b"abcdefghijklmno " * (megabytes << 16)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "first"}\n{"text": "' + words + b'"}\n{"text": "last"}')
    source = config(source=f"jsonl:{tmp_path}/a.jsonl", seq_len=1024)
    tokens = load_split(source, "train")["tokens"].reshape(-1)
    expected = np.frombuffer(b"first" + words + b"last", np.uint8)
    is_byte = tokens < 256
    difference = tokens[is_byte] != expected[: is_byte.sum()]
    assert not difference.any() and len(tokens) > len(words) - 1024
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "first"}\n{"text": "' + words)  # no end
    with pytest.raises(UserError, match=r"a\.jsonl:2: not valid JSON") as error:
        load_split(source, "train")
    assert len(str(error.value)) < 500


def test_a_byte_order_mark_is_no_text_and_other_bytes_stay(config, tmp_path):
    """NUL, line ends of all kinds and empty documents are kept as they are."""
    text = "one\r\ntwo\x00\rthree\x85\u2028 \n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "b.txt").write_bytes(b"")
    lines = [json.dumps({"text": text}), json.dumps({"text": ""})]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    for source in (f"text:{tmp_path}/*.txt", f"jsonl:{tmp_path}/a.jsonl"):
        split = load_split(config(source=source, seq_len=64, mode="documents"), "train")
        for row, want in zip(split["tokens"].tolist(), (text, ""), strict=True):
            assert row == [257, *want.encode(), 258] + [256] * (62 - len(want.encode()))
