"""Every source of files under odd paths; links, hidden files, patterns, empty folders."""

import io
import json
import os
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from ssljax.base.errors import UserError
from ssljax.data import REGISTRY, describe, load_split
from ssljax.data.paths import files_below, matches

ODD = [
    "a[1]",
    "a[b-c]*",
    "what?",
    "star*",
    "two words",
    "#1",
    "ünï·код",
    "100%",
    "a+b",
    "{x}",
    "it's",
    "~t",
    "-x",
    ".h",
]


def write_npz(path, number):
    np.savez(path, label=np.full(4, number))


def write_idx(path, number):
    path.write_bytes(struct.pack(">HBBI", 0, 8, 1, 4) + bytes([number] * 4))


def write_text(path, number):
    path.write_text(f"{number}" * 40)


def write_jsonl(path, number):
    path.write_text("\n".join(json.dumps({"label": number}) for _ in range(4)))


def write_images(path, number):
    for name in ("cat", "dog"):
        (path / name).mkdir(parents=True)
        Image.new("L", (4, 4), number).save(path / name / "1.PNG")


def write_sounds(path, number):
    for name in ("cat", "dog"):
        (path / name).mkdir(parents=True)
        soundfile.write(path / name / "1.WAV", np.full(8, number / 128), 100)


def write_parquet(path, number):
    pq.write_table(pa.table({"label": [number] * 4}), path)


def write_csv(path, number):
    path.write_text("label\n" + f"{number}\n" * 4)


def write_array_record(path, number):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(4):
        writer.write(json.dumps({"label": number}).encode())
    writer.close()


def write_tar(path, number):
    with tarfile.open(path, "w") as tar:
        for row in range(4):
            info = tarfile.TarInfo(f"{row}.cls")
            info.size = len(str(number))
            tar.addfile(info, io.BytesIO(str(number).encode()))


def number_of(arrays):
    """The number that one of the functions above wrote."""
    if "image" in arrays:
        return int(arrays["image"].max())
    if "audio" in arrays:
        return round(128 * arrays["audio"].max())
    return int(chr(arrays["tokens"][0, 0])) if "tokens" in arrays else int(arrays["label"][0])


SOUND = {"sample_rate": 100, "clip_seconds": 0.1}
WRITERS = {
    "npz": (".npz", write_npz),
    "idx": ("-idx1", write_idx),
    "text": (".txt", write_text),
    "jsonl": (".jsonl", write_jsonl),
    "images": ("", write_images),
    "audio": ("", write_sounds),
    "parquet": (".parquet", write_parquet),
    "csv": (".csv", write_csv),
    "tsv": (".tsv", write_csv),
    "array_record": (".array_record", write_array_record),
    "webdataset": (".tar", write_tar),
}
# No path, or folders of one form; tests in test_tfds.py, test_formats.py, test_declared.py, test_graphs.py.
OTHERS = {"builtin", "tfds", "hf", "declared", "graphs"}


def test_every_source_is_tested():
    assert set(REGISTRY) == set(WRITERS) | OTHERS


@pytest.fixture
def data_of(config):
    """Returns a function source, split -> number in the data."""
    return lambda source, split="train": number_of(load_split(config(source=source, seq_len=4, **SOUND), split))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("odd", ODD)
def test_odd_folders(kind, odd, data_of, tmp_path):
    """`{split}` and a plain path, in a folder with an odd name next to folders that its name would match."""
    end, write = WRITERS[kind]
    for i, name in enumerate((odd, "a1", "ab*", "whatx", "starry")):
        (tmp_path / name).mkdir()
        for j, split in enumerate(("train", "test")):
            write(tmp_path / name / f"{split}{end}", 2 * i + j)
    for j, split in enumerate(("train", "test")):
        assert data_of(f"{kind}:{tmp_path}/{odd}/{split}{end}") == j
        if kind not in ("images", "audio"):
            continue
        assert data_of(f"{kind}:{tmp_path}/{odd}/{split}/") == j
    if not set(odd) & set("*?"):  # which match the other folders too
        for j, split in enumerate(("train", "test")):
            assert data_of(f"{kind}:{tmp_path}/{odd}/{{split}}{end}", split) == j
        with pytest.raises(UserError, match=r"unknown split 'dev' .* \(it has: test, train\)"):
            data_of(f"{kind}:{tmp_path}/{odd}/{{split}}{end}", "dev")


@pytest.mark.parametrize("kind", WRITERS)
def test_relative_paths_home_and_variables(kind, data_of, tmp_path, monkeypatch):
    end, write = WRITERS[kind]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / f"x{end}", 5)
    monkeypatch.chdir(tmp_path / "in")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOME_DATA", str(tmp_path / "in"))
    for path in (
        f"x{end}",
        f"./x{end}",
        f"../in/x{end}",
        f"~/in/x{end}",
        f"$SOME_DATA/x{end}",
        f"${{SOME_DATA}}/x{end}",
    ):
        assert data_of(f"{kind}:{path}") == 5
    assert data_of(f"{kind}:{tmp_path}//in/./x{end}") == 5


@pytest.mark.parametrize("kind", WRITERS)
def test_links(kind, data_of, tmp_path):
    """Before: class folders that are links vanished."""
    end, write = WRITERS[kind]
    (tmp_path / "real").mkdir()
    write(tmp_path / "real" / f"x{end}", 5)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / f"link{end}.x").symlink_to(tmp_path / "real" / f"x{end}")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "self").symlink_to("self")
    assert data_of(f"{kind}:{tmp_path}/link/x{end}") == data_of(f"{kind}:{tmp_path}/link{end}.x") == 5
    for name in ("broken", "self"):
        with pytest.raises(UserError, match=rf"^data\.source: .*/{name} is a broken link \(to [^\n]*\)$"):
            data_of(f"{kind}:{tmp_path}/{name}")
    with pytest.raises(UserError, match=r"broken link"):
        data_of(f"{kind}:{tmp_path}/b*")


# ---- folders of images


@pytest.fixture
def folder(tmp_path):
    """A folder of two classes with two pictures each."""
    for name in ("cat", "dog"):
        for i in range(2):
            (tmp_path / "f" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 10 * i).save(tmp_path / "f" / name / f"{i}.png")
    return tmp_path / "f"


def classes_and_labels(config, folder, split="train"):
    data = config(source=f"images:{folder}")
    return describe(data).classes, load_split(data, split)["label"].tolist()


def test_class_folders_that_are_links(config, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (4, 4), 3).save(tmp_path / "elsewhere" / "0.png")
    (folder / "emu").symlink_to(tmp_path / "elsewhere")
    (folder / "dog" / "again").symlink_to(folder)  # a loop
    assert classes_and_labels(config, folder) == (("cat", "dog", "emu"), [0, 0, 1, 1, 2])
    (folder / "fox").symlink_to(tmp_path / "missing")
    with pytest.raises(UserError, match=r"^data\.source: .*/fox is a broken link \(to .*missing\)$"):
        describe(config(source=f"images:{folder}"))


def test_hidden_files_and_folders_are_left_out(config, folder):
    """Before: `.ipynb_checkpoints` gave images of a class that does not exist, `._x.jpg` a corrupt image."""
    expected = classes_and_labels(config, folder)
    for name in (".ipynb_checkpoints", "cat/.thumbs", "__MACOSX", "@eaDir/cat"):
        (folder / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(folder / name / "x.png")
    for name in (".DS_Store", "cat/.DS_Store", "cat/._0.png", "dog/Thumbs.db"):
        (folder / name).write_bytes(b"no picture")
    assert classes_and_labels(config, folder) == expected == (("cat", "dog"), [0, 0, 1, 1])


def test_other_files_and_empty_classes_are_mentioned(config, folder, caplog):
    (folder / "emu").mkdir()
    (folder / "cat" / "notes.heic").write_text("x")
    (folder / "cat" / "2.JFIF").write_bytes((folder / "cat" / "0.png").read_bytes())
    assert classes_and_labels(config, folder) == (("cat", "dog", "emu"), [0, 0, 0, 1, 1])
    lines = [record.getMessage() for record in caplog.records]
    assert sum("the class folder 'emu'" in line for line in lines) == 1
    assert sum("1 files are not read" in line and "notes.heic" in line for line in lines) == 1


@pytest.mark.parametrize("place", ["loose.png", "cat/deep/2.png"])
def test_images_in_several_levels_have_no_labels_unless_asked(config, folder, place, caplog):
    """Before: the first folder was the class, or loose images were refused."""
    (folder / place).parent.mkdir(exist_ok=True)
    Image.new("L", (4, 4), 50).save(folder / place)
    data = config(source=f"images:{folder}")
    assert "label" not in describe(data).elements and describe(data).size == 5
    assert sum("folders of several levels, so they have no labels" in r.getMessage() for r in caplog.records) == 1
    asked = config(source=f"images:{folder}", keys={"image": "image", "label": "folder"})
    names = sorted({"cat", "dog", place.rpartition("/")[0] or "."})
    assert describe(asked).classes == tuple(names)
    split = load_split(asked, "train")
    assert [names[label] for label in split["label"][split["image"].max((1, 2, 3)) == 50]] == [
        names[names.index(place.rpartition("/")[0] or ".")]
    ]


def test_files_next_to_the_folders_of_splits(config, folder, tmp_path):
    """Before: a traceback, as a file was taken for a split."""
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "train").symlink_to(folder)
    data = config(source=f"images:{tmp_path}/{{split}}")
    assert load_split(data, "train")["label"].tolist() == [0, 0, 1, 1]
    with pytest.raises(UserError, match=r"unknown split 'test' .* \(it has: f, train\)"):
        load_split(data, "test")


# ---- patterns


def test_patterns(tmp_path):
    for name in ("a/x1.txt", "a/x2.txt", "a/b/x3.txt", "a/.h/x4.txt", "a/x[1].txt", "c/train_0.txt", "c/test_0.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "a/b/loop").symlink_to(tmp_path / "a")

    def found(pattern):
        return [(str(path.relative_to(tmp_path)), split) for path, split in matches(f"{tmp_path}/{pattern}")]

    assert found("a/x[12].txt") == [("a/x1.txt", None), ("a/x2.txt", None)]
    assert found("a/x[!1].txt") == [("a/x2.txt", None)]
    assert found("a/x[1].txt") == [("a/x[1].txt", None)]  # exists as it is written
    assert found("a/x?.txt") == [("a/x1.txt", None), ("a/x2.txt", None)]
    assert found("**/x?.txt") == [("a/b/x3.txt", None), ("a/x1.txt", None), ("a/x2.txt", None)]
    assert found("a/**") == [(name, None) for name in ("a/b/x3.txt", "a/x1.txt", "a/x2.txt", "a/x[1].txt")]
    assert found("c/{split}_*.txt") == [("c/test_0.txt", "test"), ("c/train_0.txt", "train")]
    assert found("*/x{split}.txt") == [("a/x1.txt", "1"), ("a/x2.txt", "2"), ("a/x[1].txt", "[1]")]
    assert found("no/*") == found("a/no*") == []
    assert list(files_below(tmp_path / "c")) == [tmp_path / "c/test_0.txt", tmp_path / "c/train_0.txt"]


def test_folders_that_match_a_pattern_of_files_are_left_out(data_of, tmp_path):
    (tmp_path / "sub").mkdir()
    write_text(tmp_path / "x.txt", 4)
    assert data_of(f"text:{tmp_path}/*") == 4
    with pytest.raises(UserError, match=r"^data\.source: cannot read .*/sub \(Is a directory\)$"):
        data_of(f"text:{tmp_path}/sub")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(data_of, tmp_path):
    (tmp_path / "sub").mkdir(mode=0)
    with pytest.raises(UserError, match=r"^data\.source: cannot read .*/sub \(Permission denied\)$"):
        data_of(f"text:{tmp_path}/sub/*")


def test_patterns_that_match_nothing(config, tmp_path):
    for kind, things in (("images", "folder"), ("text", "file")):
        with pytest.raises(UserError, match=rf"^data\.source: .*/no\* matches no {things}$"):
            describe(config(source=f"{kind}:{tmp_path}/no*", seq_len=4))
