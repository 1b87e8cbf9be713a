"""Errors of users: one line that names the key or file, the value, and the allowed values."""

import gzip
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from ssljax.base.errors import UserError
from ssljax.data import describe, load_split, open_data

IMAGES = np.zeros((6, 4, 4, 3), np.uint8)


@pytest.fixture
def fails(config):
    """Returns a check that a config is refused with a matching line, in each way to use its data."""

    def check(pattern, **keys):
        for use in (describe, lambda c: open_data(c, 2).batch(0), lambda c: load_split(c, c.split)):
            try:
                use(config(**keys))
            except UserError as error:
                assert "\n" not in str(error)
                assert re.search(pattern, str(error)), str(error)
                found = True
            else:
                found = False
            if use is not describe:  # which does not decode images
                assert found, f"no error: {keys}"

    return check


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return f"npz:{tmp_path}/a.npz"

    return write


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


# ---- values of keys


@pytest.mark.parametrize(
    "keys, pattern",
    [
        ({}, r"^data\.source: give either a source or a mixture"),
        ({"source": "builtin:digits", "mixture": [{"source": "builtin:digits"}]}, r"^data\.source: give either"),
        ({"source": "x", "sed": 1}, r"^data\.sed: unknown key; did you mean 'seed'\?"),
        # Before: a process that aborts, an OverflowError.
        ({"source": "x", "tokenizer": {"name": "bpe", "vocab_size": 2**40}}, r"^data\.tokenizer\.vocab_size: got "),
        ({"source": "builtin:digits", "image_size": 2**31}, r"^data\.image_size: got 2147483648, must be < 65536"),
        ({"source": 3}, r"^data\.source: got 3"),
        ({"source": "x", "mode": "window"}, r"^data\.mode: got 'window'; did you mean 'windows'\?"),
        ({"source": "x", "overlap": 3, "mode": "packed"}, r"^data\.overlap: got 3, must be 0 in mode 'packed'"),
        ({"source": "x", "overlap": 8, "seq_len": 8}, r"^data\.overlap: got 8, must be < seq_len \(8\)"),
        ({"source": "x", "seq_len": 0}, r"^data\.seq_len: got 0, must be > 1"),
        ({"source": "x", "image_size": -1}, r"^data\.image_size: got -1, must be > 0"),
        ({"source": "x", "keys": {"image": "i", "train": {"image": "i"}}}, r"^data\.keys: mixes columns and splits"),
        ({"source": "x", "tokenizer": {"name": "bp"}}, r"^data\.tokenizer\.name: got 'bp'"),
        ({"source": "x", "tokenizer": {"name": "file"}}, r"^data\.tokenizer\.path: got None"),
        ({"source": "x", "tokenizer": {"path": "t.json"}}, r"^data\.tokenizer\.path: got 't.json'"),
        (
            {"mixture": [{"source": "x"}], "streams": {"u": {"split": "train"}}},
            r"^data\.streams\.u\.source: must be given with a mixture",
        ),
        ({"mixture": [{"source": "x", "weight": 0}]}, r"^data\.mixture\[0\]\.weight: got 0"),
    ],
)
def test_config(config, keys, pattern):
    with pytest.raises(UserError, match=pattern):
        config(**keys)


# ---- sources and splits


@pytest.mark.parametrize(
    "source, pattern",
    [
        (
            "digits",
            r"^data\.source: got 'digits', must be 'kind:location' with a kind of array_record, audio, builtin, csv, ",
        ),
        (
            "bultin:digits",
            r"unknown kind of source 'bultin' .*did you mean 'builtin'\? \(allowed: array_record, audio, builtin, .*\)",
        ),
        (
            "builtin:digit",
            r"unknown builtin:digit; did you mean 'digits'\? \(allowed: addition, digits, markov, modular-addition, ",
        ),
        ("npz:$NO_SUCH_VARIABLE/a.npz", r"environment variable NO_SUCH_VARIABLE is not set \(in '\$NO_SUCH_VARIABLE/a"),
        ("text:${NO_SUCH_VARIABLE}/*.txt", r"environment variable NO_SUCH_VARIABLE is not set"),
        ("npz:/no/such/file.npz", r"^data\.source: /no/such/file\.npz does not exist$"),
        ("text:/no/such/*.txt", r"^data\.source: /no/such/\*\.txt matches no file$"),
        ("images:/no/such", r"^data\.source: /no/such does not exist$"),
        ("npz:/no/{split}.npz", r"^data\.source: /no/train\.npz does not exist$"),
        ("no.such.module:Source:x", r"^data\.source: cannot import 'no\.such\.module:Source'"),
    ],
)
def test_sources(fails, source, pattern):
    fails(pattern, source=source, seq_len=4)


def test_a_slice_of_thousands_of_digits_is_refused(fails):
    """Before: a ValueError."""
    fails(r"^data\.split: got 'train\[:9", source="builtin:digits", split=f"train[:{'9' * 5000}]")


def test_unknown_splits(fails, npz, tmp_path):
    fails(
        r"^data\.split: unknown split 'tset' of builtin:digits; did you mean 'test'\?",
        source="builtin:digits",
        split="tset",
    )
    fails(
        r"of builtin:python-docs \(it has: train, valid, test, all\)",
        source="builtin:python-docs",
        split="dev",
        seq_len=4,
    )
    source = npz(image=IMAGES)
    fails(r"unknown split 'test': npz:.* has no splits, only 'train' \(or 'all'\)", source=source, split="test")
    keys = {"train": {"image": "image"}, "valid": {"image": "image"}}
    fails(r"unknown split 'test' of data\.keys for .* \(it has: train, valid\)", source=source, split="test", keys=keys)
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_text("some text")
    fails(
        r"unknown split 'test' .* \(it has: train, valid\)",
        source=f"text:{tmp_path}/{{split}}.txt",
        split="test",
        seq_len=4,
    )
    (tmp_path / "s.jsonl").write_text('{"label": 1, "split": "train"}\n{"label": 1, "split": "dev"}')
    fails(r"unknown split 'test' .* \(it has: dev, train\)", source=f"jsonl:{tmp_path}/s.jsonl", split="test")
    fails(r"^data\.split: got 'train\[:x\]', must be", source="builtin:digits", split="train[:x]")


def test_empty_splits(fails, npz, tmp_path):
    fails(r"^data\.split: builtin:digits \[train\[5:5\]\] is empty", source="builtin:digits", split="train[5:5]")
    where = {"label": 77}
    fails(r"is empty under data\.where \{'label': 77\}", source="builtin:digits", where=where)
    fails(r"is empty", source=npz(image=IMAGES[:0]))
    (tmp_path / "a.jsonl").write_text("\n")
    fails(r"^data\.split: jsonl:.* is empty", source=f"jsonl:{tmp_path}/a.jsonl")
    (tmp_path / "folder").mkdir()
    fails(r"^data\.split: images:.*folder is empty, must have image files", source=f"images:{tmp_path}/folder")


# ---- columns


def test_a_table_without_a_line_of_names(fails, tmp_path):
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        (tmp_path / f"a.{kind}").write_text(f"good film{separator}1\nbad film{separator}0\n")
        source, hint = f"{kind}:{tmp_path}/a.{kind}", rf"no line of names, write {kind}:FILE#text,label$"
        fails(hint, source=source)
        fails(hint, source=source, keys={"text": "text"})
    fails(r"\(it has: a, label\)$", source=f"{source}#a,label", keys={"text": "text"})


def test_columns(fails, npz):
    source = npz(images=IMAGES, labels=np.arange(6))
    fails(r"^data\.keys: .* has no column called image, label, .* \(it has: images, labels\)", source=source)
    fails(
        r"^data\.keys\.image: unknown column 'image' .*; did you mean 'images'\?",
        source=source,
        keys={"image": "image"},
    )
    fails(
        r"^data\.where\.lables: unknown column 'lables' .* 'labels'\?",
        source=source,
        keys={"image": "images"},
        where={"lables": 1},
    )
    fails(r"\(it has: images, labels\)$", source=source)
    fails(r"^data\.keys\.image: unknown column 'ends'", source=source, keys={"image": "images@ends"})
    fails(r"^data\.keys\.image: got 3, must be the name", source=source, keys={"image": 3})
    fails(r"'A@offsets' needs a flat array", source=source, keys={"image": "images@labels"})
    fails(r"^data\.keys\.image: got int64 6 .* must be uint8 images", source=source, keys={"image": "labels"})
    fails(r"^data\.keys\.label: got uint8 of shape \(6, 4, 4, 3\)", source=source, keys={"label": "images"})
    flat = npz(png=np.zeros(9, np.uint8), ends=np.array([0, 5, 12]))
    fails(r"offsets must increase from 0 to the length of the array \(9\)", source=flat, keys={"image": "png@ends"})
    fails(r"^data\.keys\.image: got float32 .* must be uint8 images", source=npz(image=IMAGES.astype(np.float32)))
    fails(r"^data\.keys\.image: got 7 channels", source=npz(image=np.zeros((3, 4, 4, 7), np.uint8)))
    fails(
        r"^data\.keys\.text: got 0 at row 0 of npz:.*, must be text",
        source=npz(labels=np.arange(6)),
        keys={"text": "labels"},
        seq_len=4,
    )


def test_joins(fails, npz, tmp_path):
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": "x", "image": 0}) for _ in range(5)))
    source = npz(image=IMAGES) + f"+jsonl:{tmp_path}/c.jsonl"
    fails(r"column 'image' is in more than one of the joined sources", source=source, mode="documents", seq_len=8)
    source = npz(pictures=IMAGES) + f"+jsonl:{tmp_path}/c.jsonl"
    keys = {"image": "pictures", "text": "text"}
    fails(r"differ in length: image has 6 rows, text has 5 rows", source=source, keys=keys, mode="documents", seq_len=8)


def test_labels(fails, npz):
    labels = np.array([0, 1, 2, -1, 1, 0])
    fails(
        r"^data\.keys\.label: got label -1 at row 3 of .*, must be >= 0",
        source=npz(image=IMAGES, label=labels),
    )
    labels[3] = 9
    source = npz(image=IMAGES, label=labels)
    fails(r"got label 9 at row 3 of .* must be in \[0, 3\)", source=source, num_classes=3)
    fails(r"got float64 .*, must be integers", source=npz(label=np.array([0.5, 1])))
    fails(r"must hold numbers of one shape", source=npz(label=np.array([b"a", b"b"])))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.uint64])
def test_labels_of_every_integer_type_are_exact(config, npz, dtype):
    labels = np.array([1, 0, 1, 1], dtype)
    found = load_split(config(source=npz(label=labels)), "train")["label"]
    assert found.dtype == np.int32 and found.tolist() == labels.astype(int).tolist()


def test_integers_beyond_32_bits_are_refused(fails, npz, tmp_path):
    """Before: the label 2^32 + 3 became 3, and other columns wrapped on the device."""
    for key in ("label", "weight"):
        for value, dtype in ((2**32 + 3, np.int64), (2**31, np.int64), (2**63 + 3, np.uint64), (2**32, np.uint64)):
            source = npz(**{key: np.array([0, value], dtype)})
            fails(rf"^data\.keys\.{key}: got {value} at row 1 of .*, must be in \[", source=source, keys={key: key})
    fails(
        r"got label 2147483648 at row 0 .* must be >= 0 and < 2\*\*31", source=npz(label=np.array([2**31], np.uint32))
    )
    for value, shown in ((10**400, "a huge integer"), (2**64, 2**64), (2**63, 2**63)):
        (tmp_path / "a.jsonl").write_text(json.dumps({"n": -1}) + "\n" + json.dumps({"n": value}))
        fails(
            rf"^data\.keys\.n: got {shown} at .*a\.jsonl:2 of .*, must fit 32 bits",
            source=f"jsonl:{tmp_path}/a.jsonl",
            keys={"n": "n"},
        )


def test_numbers_that_are_not_finite_are_refused(fails, npz, tmp_path):
    for value in (np.nan, np.inf, 1e300):
        source = npz(weight=np.array([0, value]))
        fails(r"^data\.keys\.weight: got .* at row 1 of .*, must be finite", source=source, keys={"weight": "weight"})
    for text in ("NaN", "-Infinity", "1e999"):
        (tmp_path / "a.jsonl").write_text(f'{{"n": 1.0}}\n{{"n": {text}}}')
        fails(r"^data\.keys\.n: got (nan|-?inf) at .*:2 of", source=f"jsonl:{tmp_path}/a.jsonl", keys={"n": "n"})


@pytest.mark.parametrize("dtype", ["U3", "S3", "c16", "M8[s]", [("x", "i4")], object])
def test_arrays_of_other_types_are_refused(fails, npz, dtype):
    source = npz(column=np.zeros(3, dtype))
    for key in ("image", "other") if dtype == "U3" else ("label", "image", "other"):
        fails(r"^data\.(keys\.\w+: |source: .*Object arrays)", source=source, keys={key: "column"})


def test_arrays_without_rows_or_pixels(fails, npz, tmp_path):
    fails(
        r"^data\.keys: label of .*a\.npz is a single value, must be an array with rows", source=npz(label=np.array(3))
    )
    fails(r"got images of 0x4x1 .*, without pixels", source=npz(image=np.zeros((3, 0, 4), np.uint8)), image_size=4)
    np.save(tmp_path / "b.npy", IMAGES)
    fails(r"is damaged or not an npz file \(a single array \(\.npy\)", source=f"npz:{tmp_path}/b.npy")
    (tmp_path / "i").write_bytes(b"\0\0\x08\x03" + bytes(12))
    fails(r"^data\.split: idx:.* is empty", source=f"idx:{tmp_path}/i")


def test_token_ids_where_text_is_expected(fails, npz, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": [1, 2]}\n{"text": [3]}')
    for mode in ("documents", "packed", "windows"):
        fails(
            r"^data\.keys\.text: got \[1, 2\] at .*:1 of .*, must be text",
            source=f"jsonl:{tmp_path}/a.jsonl",
            seq_len=4,
            mode=mode,
        )
        fails(
            r"^data\.keys\.text: got \[0 1\] at row 0 of .*, must be text",
            source=npz(text=np.arange(4).reshape(2, 2)),
            seq_len=4,
            mode=mode,
        )


# ---- damaged content


def test_damaged_npz(fails, tmp_path, npz):
    source = npz(image=IMAGES, label=np.arange(6))
    path = tmp_path / "a.npz"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"not a zip at all", b""):
        path.write_bytes(damaged)
        fails(r"^data\.source: .*a\.npz is damaged or not an npz file", source=source)
    flipped = bytearray(content)
    flipped[content.index(IMAGES.tobytes()[:100]) + 150] ^= 255  # breaks the checksum of the member
    path.write_bytes(bytes(flipped))
    fails(r"^data\.source: .*a\.npz is damaged", source=source)


def test_a_pickled_npz_is_refused(fails, npz):
    fails(r"is damaged or not an npz file", source=npz(label=np.array([{"a": 1}], object)))


def test_a_split_of_several_files(fails, npz, tmp_path):
    npz(image=IMAGES)
    np.savez(tmp_path / "b.npz", image=IMAGES)
    fails(r"^data\.source: npz:.*\*\.npz matches 2 files, must match one \(.*a\.npz", source=f"npz:{tmp_path}/*.npz")
    for name in ("c", "d"):
        (tmp_path / name).mkdir()
    fails(r"^data\.source: images:.* matches 2 folders", source=f"images:{tmp_path}/[cd]")


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x63\x01\0\0\0\x01x", b"\0\0\x08\x01\0\0\0\x09xx"])
def test_damaged_idx(fails, tmp_path, content):
    for name, data in (("labels", content), ("labels.gz", gzip.compress(content)[:-1])):
        (tmp_path / name).write_bytes(data)
        fails(r"^data\.source: .*labels.* is damaged or not an idx file", source=f"idx:{tmp_path}/{name}")


def test_damaged_jsonl(fails, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "fine"}\n')
    source = {"source": f"jsonl:{tmp_path}/*.jsonl", "seq_len": 4, "mode": "documents"}
    for line, pattern in [
        ('{"text": "cut', r"b\.jsonl:3: not valid JSON \(.*column \d+\)"),
        ("[1, 2]", r"b\.jsonl:3: got a JSON list, must be an object"),
        ('{"txt": "misspelt"}', r"b\.jsonl:3: no key 'text'; did you mean 'txt'\?"),
        ('{"text": null}', r"^data\.keys\.text: got None at .*b\.jsonl:3 of .*, must be text"),
        ('{"text": 3}', r"^data\.keys\.text: got 3 at .*b\.jsonl:3 of .*, must be text"),
    ]:
        (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n\n' + line + "\n")
        fails(pattern, **source)
    for line, pattern in [
        ('{"text": "x", "y": ' + "[" * 100_000 + "]" * 100_000 + "}", r"b\.jsonl:3: .* are nested too deeply"),
        ('{"text": "x", "y": ' + "9" * 5000 + "}", r"b\.jsonl:3: a number has too many digits"),
    ]:
        (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n\n' + line + "\n")
        fails(pattern, **source)
    # A key that the first object lacks is a column, too: before, it was lost without a word.
    (tmp_path / "b.jsonl").write_text('{"text": "fine", "label": 1}\n')
    fails(r"^data\.source: .*a\.jsonl:1: no key 'label'", **source)
    for first, second, pattern in [
        ('"pos"', "1", r"^data\.keys\.label: got 1 at .*b\.jsonl:2 of .*, must be text, as other labels are"),
        ("1", '"pos"', r"^data\.keys\.label: got 'pos' at .*b\.jsonl:2 of .*, must be a number"),
        ("{}", '"pos"', r"^data\.keys\.label: got \{\} at .*b\.jsonl:1 of .*, must be a number"),
    ]:
        (tmp_path / "b.jsonl").write_text(f'{{"label": {first}}}\n{{"label": {second}}}')
        fails(pattern, source=f"jsonl:{tmp_path}/b.jsonl", keys={"label": "label"})


def test_damaged_text(fails, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good text\xff\xfe")
    fails(
        r"^data\.source: .*a\.txt is damaged or not UTF-8 text \(.*position 9",
        source=f"text:{tmp_path}/a.txt",
        seq_len=4,
    )
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"good text" * 100)[:-20])
    fails(r"^data\.source: .*a\.txt\.gz is damaged or not UTF-8 text", source=f"text:{tmp_path}/a.txt.gz", seq_len=4)


def test_damaged_tokenizer(fails, tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "t.json").write_text("{}")
    source = {"source": f"text:{tmp_path}/a.txt", "seq_len": 4}
    for name, pattern in (("t.json", r"not a tokenizer\.json"), ("u.json", "does not exist")):
        fails(
            rf"^data\.tokenizer\.path: .*{pattern}", tokenizer={"name": "file", "path": f"{tmp_path}/{name}"}, **source
        )


def test_short_text(fails, tmp_path):
    (tmp_path / "a.txt").write_text("0123456")
    source = f"text:{tmp_path}/a.txt"
    fails(r"^data\.seq_len: got 9, must be at most the 8 tokens of text:", source=source, seq_len=9)
    fails(r"^data\.seq_len: missing", source=source)
    fails(r"^data\.seq_len: got 2, must be > 2", source=source, seq_len=2, mode="documents")
    fails(
        r"^data\.mode: got 'windows', which cuts text without regard to rows and would drop label",
        source=source,
        seq_len=4,
        keys={"text": "text", "label": "text"},
    )


def test_images(fails, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "0.png").write_bytes(png(IMAGES[0]))
    (folder / "1.png").write_bytes(png(np.zeros((4, 5, 3), np.uint8)))
    pattern = r"^data\.source: images of mixed shapes: .*0\.png is 4x4x3 and .*1\.png is 4x5x3; set data\.image_size"
    fails(pattern, source=f"images:{folder}")
    for damaged in (b"no picture", png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))[:900]):
        (folder / "1.png").write_bytes(damaged)
        fails(r"^data\.source: corrupt image .*1\.png", source=f"images:{folder}", image_size=4)


def test_a_cache_folder_that_cannot_be_written(fails, tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "file").write_text("")
    source = {"source": f"text:{tmp_path}/a.txt", "seq_len": 4}
    fails(r"^data\.cache_dir: cannot write .*file", cache_dir=f"{tmp_path}/file/below", **source)


def test_errors_of_streams_and_of_parts_of_a_mixture_name_their_keys(config):
    nowhere = {"source": "builtin:digits", "keys": {"image": "picture"}}
    with pytest.raises(UserError, match=r"^data\.streams\.u\.keys\.image: unknown column 'picture' of builtin:digits"):
        describe(config(source="builtin:digits", streams={"u": nowhere}))
    with pytest.raises(UserError, match=r"^data\.mixture\[1\]\.keys\.image: unknown column 'picture'"):
        describe(config(mixture=[{"source": "builtin:digits"}, nowhere]))
    with pytest.raises(UserError, match=r"^data\.keys\.image: unknown column 'picture' of builtin:digits"):
        describe(config(**nowhere))
    with pytest.raises(UserError, match=r"^data\.streams\.u\.split: "):
        describe(config(source="builtin:digits", streams={"u": {"source": "builtin:digits", "split": "dev"}}))


def test_a_stream_named_as_a_key_of_the_batch_is_refused(config):
    with pytest.raises(UserError, match=r"^data\.streams\.image: the batch already has a key 'image'"):
        describe(config(source="builtin:digits", streams={"image": {"source": "builtin:digits"}}))


@pytest.mark.parametrize("name", ["bytes", "bpe", "wordpiece"])
@pytest.mark.parametrize("mode", ["windows", "packed", "documents"])
def test_half_of_a_surrogate_pair_names_its_row(fails, tmp_path, name, mode):
    lines = [json.dumps({"text": "fine"}), '{"text": "one \\ud83d leap"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    fails(
        r"^data\.keys\.text: .*a\.jsonl:2 of .*: character 4 is '\\ud83d', half of a surrogate pair",
        source=f"jsonl:{tmp_path}/a.jsonl",
        seq_len=8,
        mode=mode,
        tokenizer={"name": name, "vocab_size": 300},
    )


@pytest.mark.parametrize(
    "folder, pattern",
    [
        ("gs://bucket/cache", r"^data\.cache_dir: got 'gs://bucket/cache'; gs:/"),
        ("a\0b", r"^data\.cache_dir: got 'a"),
        ("$NOT_SET/cache", r"^data\.cache_dir: environment variable NOT_SET is not set"),
    ],
)
def test_a_cache_that_is_no_folder_of_this_machine_is_refused(fails, tmp_path, monkeypatch, folder, pattern):
    """Before: folders called gs: and $NOT_SET in the current folder, and a traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text")
    fails(pattern, source="text:a.txt", seq_len=4, tokenizer={"name": "bpe", "vocab_size": 300}, cache_dir=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
