"""The identity of data: their content, the names of classes, the partners of joined rows."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from ssljax.base.errors import UserError
from ssljax.config import load
from ssljax.data import DataSpec, describe, load_split, open_data
from ssljax.data.content import digest_files
from ssljax.data.order import VERSION
from ssljax.runs.workdir import Workdir

ROOT = pathlib.Path(__file__).parents[2]

# ---- content


def rewrite(path, old, new):
    """Replaces bytes of a file, which keeps its size and its times."""
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(old, new))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


def test_another_content_of_one_shape_is_refused_on_resume(config, tmp_path):
    """Before: accepted, since the description of the data had shapes and counts only."""
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"label": i % 2, "weight": 0.5}) for i in range(6)))
    data = config(source=f"jsonl:{file}", keys={"label": "label", "weight": "weight"})
    spec = describe(data)
    run = Workdir(tmp_path / "run", leads=True)
    run.path.mkdir()
    run.write_data(spec)
    run.append_metrics(1, {"loss": 1.0})
    some, _ = load(f"{ROOT}/configs/quickstart.py")
    run.check(some, describe(data), "auto")
    os.utime(file)  # another time of the same content
    run.check(some, describe(data), "auto")
    rewrite(file, b"0.5", b"0.7")
    changed = describe(data)
    with pytest.raises(
        UserError, match=r"a run on other data \(content\.jsonl:.*a\.jsonl \[train\]: '\w+' -> '\w+'\);"
    ):
        run.check(some, changed, "auto")
    run.check(some, changed, "force")


def test_an_earlier_order_is_another_run(config):
    spec = describe(config(source="builtin:digits"))
    assert spec.order == VERSION and DataSpec.from_json(spec.to_json()) == spec
    values = json.loads(spec.to_json())
    del values["order"], values["content"]
    assert DataSpec.from_json(json.dumps(values)) == dataclasses.replace(spec, order=1, content={})


def test_every_source_of_a_config_has_a_digest(config, tmp_path):
    np.savez(tmp_path / "a.npz", label=np.arange(4))
    np.savez(tmp_path / "b.npz", label=np.arange(4))
    a, b = f"npz:{tmp_path}/a.npz", f"npz:{tmp_path}/b.npz"
    mixture = [{"source": a}, {"source": b, "split": "train[:2]"}]
    spec = describe(config(mixture=mixture, streams={"more": {"source": "builtin:digits"}}))
    assert list(spec.content) == [f"{a} [train]", f"{b} [train]", "builtin:digits [train]"]
    assert spec.content[f"{a} [train]"] == spec.content[f"{b} [train]"]  # paths do not count


def test_digests_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr("ssljax.data.content._WHOLE", 4096)
    monkeypatch.setattr("ssljax.data.content._BLOCK", 64)
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(bytes(range(256)) * 64)
    small.write_bytes(b"x" * 10)
    files = [("", large), ("", small)]
    before = digest_files(files)
    seen = 0
    content = bytearray(large.read_bytes())
    for place in range(0, len(content), 61):
        content[place] ^= 1
        large.write_bytes(content)
        seen += digest_files(files) != before
        content[place] ^= 1
    large.write_bytes(content)
    assert digest_files(files) == before and 0.2 < seen / len(range(0, len(content), 61)) < 0.4  # a quarter is sampled
    for place in (0, -1):  # the first and the last bytes always are
        content[place] ^= 1
        large.write_bytes(content)
        assert digest_files(files) != before
        content[place] ^= 1
    large.write_bytes(content)
    small.write_bytes(b"x" * 9 + b"y")
    assert digest_files(files) != before
    small.write_bytes(b"x" * 10)
    large.write_bytes(content + b"z")
    assert digest_files(files) != before
    assert digest_files(files[::-1]) != before
    assert digest_files([("cat", small)]) != digest_files([("dog", small)])


def test_an_image_that_moves_to_another_class_changes_the_content(config, tmp_path):
    folders(tmp_path, a={"cat": 3, "dog": 3})
    data = config(source=f"images:{tmp_path}/a")
    before = describe(data)
    (tmp_path / "a/cat/2.png").rename(tmp_path / "a/dog/3.png")
    assert describe(data).content != before.content
    assert describe(data).size == before.size


def test_an_evaluation_on_a_changed_training_split_says_so(config, tmp_path, caplog):
    np.savez(tmp_path / "a.npz", label=np.arange(4))
    data = config(source=f"npz:{tmp_path}/a.npz")
    spec = describe(data)
    load_split(data, "train[:2]", spec=spec)
    assert not caplog.records
    np.savez(tmp_path / "a.npz", label=np.arange(4)[::-1])
    load_split(data, "train[:2]", spec=spec)
    (record,) = caplog.records
    assert record.getMessage().endswith("a.npz [train] is not that on which the run was trained")


# ---- names of classes


def folders(root, **sources):
    """Writes class folders: {source: {class: number of pictures}}; the grey level is the sum of the letters."""
    for source, classes in sources.items():
        for name, count in classes.items():
            (root / source / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (4, 4), level(name)).save(root / source / name / f"{i}.png")


def level(name):
    return sum(map(ord, name)) % 256


def check_labels(arrays, classes):
    """Checks that each label is the index of the class whose level its picture has."""
    assert len(arrays["label"])
    for image, label in zip(arrays["image"], arrays["label"]):
        assert image.max() == image.min() == level(classes[label])


def test_classes_of_a_mixture_are_matched_by_name(config, tmp_path):
    """Before: `cat` of one folder and `ant` of the other had the label 0."""
    folders(tmp_path, a={"cat": 4, "dog": 4}, b={"ant": 3, "dog": 3})
    data = config(mixture=[{"source": f"images:{tmp_path}/{name}"} for name in "ab"])
    spec = describe(data)
    assert spec.classes == ("cat", "dog", "ant") and spec.num_classes == 3
    dataset = open_data(data, 4)
    for step in range(6):
        check_labels(dataset.batch(step), spec.classes)
    assert {label for step in range(6) for label in dataset.batch(step)["label"].tolist()} == {0, 1, 2}


def test_names_and_numbers_are_not_mixed(config, tmp_path):
    folders(tmp_path, a={"cat": 4, "dog": 4})
    np.savez(tmp_path / "n.npz", image=np.zeros((4, 4, 4, 3), np.uint8), label=np.arange(4) % 2)
    np.savez(tmp_path / "d.npz", image=np.zeros((20, 8, 8), np.uint8), label=np.arange(20) % 10)
    with pytest.raises(UserError, match=r"^data\.mixture: labels of npz:.*n\.npz are numbers .* \(cat, dog, \.\.\.\)"):
        describe(config(mixture=[{"source": f"images:{tmp_path}/a"}, {"source": f"npz:{tmp_path}/n.npz"}]))
    only = {"keys": {"image": "image"}}
    mixture = [{"source": f"images:{tmp_path}/a", **only}, {"source": f"npz:{tmp_path}/n.npz", **only}]
    assert describe(config(mixture=mixture)).num_classes is None
    digits = describe(config(mixture=[{"source": "builtin:digits"}, {"source": f"npz:{tmp_path}/d.npz"}]))
    assert digits.num_classes == 10  # their names are the numbers
    with pytest.raises(UserError, match=r"^data\.num_classes: got 1, must be at least the 2 classes of images:"):
        describe(config(source=f"images:{tmp_path}/a", num_classes=1))


def test_streams_have_the_class_numbers_of_the_main_source(config, tmp_path):
    folders(tmp_path, a={"ant": 2, "cat": 2, "dog": 2}, b={"cat": 2, "dog": 2}, c={"emu": 2})
    data = config(source=f"images:{tmp_path}/a", streams={"more": {"source": f"images:{tmp_path}/b"}})
    check_labels(open_data(data, 4).batch(0)["more"], ("ant", "cat", "dog"))
    with pytest.raises(UserError, match=r"^data\.streams\.more: the classes emu are none of the main source"):
        describe(config(source=f"images:{tmp_path}/a", streams={"more": {"source": f"images:{tmp_path}/c"}}))


def test_splits_below_a_path_with_brackets_share_their_classes(config, tmp_path):
    folders(tmp_path / "x[1]", train={"ant": 2, "cat": 2}, test={"cat": 2})
    data = config(source=f"images:{tmp_path}/x[1]/{{split}}")
    assert load_split(data, "test")["label"].tolist() == [1, 1]


# ---- filters


FILTERS = [
    ({3, 4}, {3, 4}),
    (frozenset({3}), {3}),
    ((3, 4), {3, 4}),
    (range(3, 5), {3, 4}),
    (np.array([3, 4]), {3, 4}),
    (np.int64(3), {3}),
    ([np.uint8(3), 4.0], {3, 4}),
    ("3", {3}),  # the name of a class
    ({"3", "4"}, {3, 4}),
    ([3, "4", 99], {3, 4}),
]


@pytest.mark.parametrize("value, expected", FILTERS)
def test_filters_take_every_collection(config, value, expected):
    """Before: a set found nothing, a range or an array was a traceback."""
    data = config(source="builtin:digits", where={"label": value})
    assert set(load_split(data, "test")["label"].tolist()) == expected
    assert set(load_split(config(source="builtin:digits"), "test", where={"label": value})["label"]) == expected
    json.dumps(data.where)
    open_data(data, 4).batch(0)


@pytest.mark.parametrize(
    "value, pattern",
    [
        ({"a": 1}, r"^data\.where\.label: got \{'a': 1\}, must be a number, a text"),
        ([[1]], r"^data\.where\.label: got \[\[1\]\], must be"),
        (float("nan"), r"^data\.where\.label: got nan, must be"),
        ("cat", r"^data\.where\.label: unknown class 'cat' \(there are: 0, 1, "),
    ],
)
def test_filters_of_other_values_are_refused(config, value, pattern):
    with pytest.raises(UserError, match=pattern):
        load_split(config(source="builtin:digits"), "test", where={"label": value})


def test_filters_by_name_and_kind(config, tmp_path):
    folders(tmp_path, a={"cat": 3, "dog": 2})
    data = config(source=f"images:{tmp_path}/a")
    assert load_split(data, "train", where={"label": "dog"})["label"].tolist() == [1, 1]
    names = load_split(data, "train", where={"file_name": {"cat/0.png", "dog/1.png"}})
    assert names["label"].tolist() == [0, 1]
    np.savez(tmp_path / "a.npz", label=np.arange(4), kind=np.array(["a", "b", "a", "b"]), old=np.arange(4) < 2)
    data = config(source=f"npz:{tmp_path}/a.npz")
    assert load_split(data, "train", where={"kind": {"b"}})["label"].tolist() == [1, 3]
    assert load_split(data, "train", where={"old": True})["label"].tolist() == [0, 1]
    (tmp_path / "a.jsonl").write_text('{"label": 0, "x": 1}\n{"label": 1, "x": true}\n{"label": 2, "x": 1.0}\n')
    mixed = config(source=f"jsonl:{tmp_path}/a.jsonl")
    assert load_split(mixed, "train", where={"x": 1})["label"].tolist() == [0, 2]  # before: [0, 1, 2]
    for where, pattern in (
        ({"old": 1}, r"^data\.where\.old: got 1, but the values of the column are others, such as True"),
        ({"label": True}, r"^data\.where\.label: got True, but the values of the column are others, such as 0"),
        ({"label": "3"}, r"^data\.where\.label: got '3', but the values of the column are others, such as 0"),
        ({"kind": [1, "a"]}, r"^data\.where\.kind: got 1, but the values of the column are others, such as 'a'"),
    ):
        with pytest.raises(UserError, match=pattern):
            load_split(data, "train", where=where)


# ---- joins


@pytest.fixture
def pictures(tmp_path):
    """A folder of four pictures in two classes; picture i has the level 40 i."""
    for i, name in enumerate(("cat/1", "cat/10", "dog/2", "dog/3")):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 40 * i).save(tmp_path / "p" / f"{name}.png")
    return f"images:{tmp_path}/p"


def captions(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{path}"


NAMES = ["dog/3.png", "cat/1.png", "dog/2.png", "cat/10.png"]
FORMS = {
    "path": lambda name: name,
    "name": lambda name: name.rpartition("/")[2],
    "path without suffix": lambda name: name.removesuffix(".png"),
    "stem": lambda name: name.rpartition("/")[2].removesuffix(".png"),
    "other suffix": lambda name: name.replace(".png", ".txt"),
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_and_captions_are_joined_by_name(config, tmp_path, pictures, form):
    """Before: by position, where a folder is in the order of its names (10.png before 2.png)."""
    source = captions(
        tmp_path / "c.jsonl",
        [{"file_name": FORMS[form](name), "text": name[:6], "n": i} for i, name in enumerate(NAMES)],
    )
    keys = {"image": "image", "n": "n", "label": "label"}
    found = load_split(config(source=f"{pictures}+{source}", keys=keys), "train")
    assert found["image"][:, 0, 0, 0].tolist() == [0, 40, 80, 120]
    assert found["n"].tolist() == [1, 3, 2, 0] and found["label"].tolist() == [0, 0, 1, 1]
    # The first source decides the order, and may name a picture several times.
    turned = load_split(config(source=f"{source}+{pictures}", keys=keys), "train")
    assert turned["n"].tolist() == [0, 1, 2, 3] and turned["image"][:, 0, 0, 0].tolist() == [120, 0, 80, 40]


def test_pictures_and_texts_are_joined_by_stem(config, tmp_path, pictures):
    for i, name in enumerate(NAMES):
        (tmp_path / name.rpartition("/")[2].replace(".png", ".txt")).write_text(str(i))
    data = config(source=f"{pictures}+text:{tmp_path}/*.txt", mode="documents", seq_len=4)
    found = load_split(data, "train")
    assert [chr(t) for t in found["tokens"][:, 1]] == ["1", "3", "2", "0"]
    assert found["image"][:, 0, 0, 0].tolist() == [0, 40, 80, 120]


def test_joins_without_a_stated_order_are_refused(config, tmp_path, pictures):
    source = captions(tmp_path / "c.jsonl", [{"text": name} for name in NAMES])
    with pytest.raises(UserError, match=r"^data\.source: images:.*/p states no order of its rows, .* 'file_name'"):
        describe(config(source=f"{pictures}+{source}", mode="documents", seq_len=8))
    np.savez(tmp_path / "i.npz", image=np.zeros((4, 4, 4), np.uint8))
    captions(tmp_path / "d.jsonl", [{"text": name} for name in NAMES])
    with pytest.raises(UserError, match=r"^data\.source: jsonl:.*\*\.jsonl states no order of its rows"):
        describe(config(source=f"npz:{tmp_path}/i.npz+jsonl:{tmp_path}/*.jsonl", mode="documents", seq_len=8))
    whole = config(source=f"npz:{tmp_path}/i.npz+{source}", mode="documents", seq_len=8)
    assert describe(whole).size == 4  # an array and the lines of a file have an order


@pytest.mark.parametrize(
    "names, pattern",
    [
        (NAMES[:3], r"'cat/10\.png' of images:.* has 0 partners in jsonl:.*c\.jsonl, must have one; did you mean"),
        (
            [*NAMES, NAMES[0]],
            r"'dog/3\.png' of images:.* has 2 partners in jsonl:.*, must have one \(rows 0, 4, \.\.\.\)",
        ),
        ([*NAMES[:3], 7], r"file_name is 7 at .*c\.jsonl:4 of jsonl:.*, must be text"),
    ],
)
def test_rows_without_one_partner_are_refused(config, tmp_path, pictures, names, pattern):
    source = captions(tmp_path / "c.jsonl", [{"file_name": name, "n": 1} for name in names])
    with pytest.raises(UserError, match=rf"^data\.source: {pattern}"):
        describe(config(source=f"{pictures}+{source}", keys={"image": "image", "n": "n"}))


def test_further_captions_are_mentioned(config, tmp_path, pictures, caplog):
    source = captions(tmp_path / "c.jsonl", [{"file_name": name, "n": 1} for name in [*NAMES, "x.png"]])
    with caplog.at_level("INFO", "ssljax"):
        describe(config(source=f"{pictures}+{source}", keys={"image": "image", "n": "n"}))
    assert any("1 of 5 rows of jsonl:" in record.getMessage() for record in caplog.records)
