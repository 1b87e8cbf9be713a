"""Tables of every format hold the same rows, are read on demand, and give the same batches on any process."""

import csv
import gzip
import io
import json
import os
import pathlib
import sys
import tarfile
import types

import datasets
import fsspec
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from datasets import Dataset, Features, Value
from datasets import Image as HFImage
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2
from upath import UPath

from ssljax.base.errors import UserError
from ssljax.data import describe, load_split, open_data
from ssljax.data.columns import kept
from ssljax.data.order import RowBlocks, permutation
from ssljax.data.sources import OnDemand, Table, open_source
from ssljax.data.splits import Split
from ssljax.data.storage import read_ranges, state_of

COUNT = 23


def rows(count=COUNT):
    """Pictures, labels, texts and numbers of every kind."""
    rng = np.random.default_rng(0)
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).save(file, "PNG")
        yield {"image": file.getvalue(), "label": i % 3, "text": f'row {i}: ünï, "quoted"\nand a line', "score": i / 4}


def columns(table):
    return {name: [row[name] for row in table] for name in table[0]}


def write_parquet(path, table):
    pq.write_table(pa.table(columns(table)), path, row_group_size=4)


def write_csv(path, table):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [name for name in table[0] if name != "image"]
        writer.writerow(names)
        writer.writerows([[row[name] for name in names] for row in table])


def write_tsv(path, table):
    """Values in a line cannot have newlines."""
    names = [name for name in table[0] if name != "image"]
    lines = [names, *([str(row[name]).replace("\n", " ") for name in names] for row in table)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


def write_jsonl(path, table):
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "image"}) + "\n" for row in table))


def example(row):
    out = tf_example_pb2.Example()
    for name, value in row.items():
        feature = out.features.feature[name]
        if isinstance(value, float):
            feature.float_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
    return out.SerializeToString()


def record_writer(encode):
    def write(path, table):
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for row in table:
            writer.write(encode(row))
        writer.close()

    return write


def write_tar(path, table):
    with tarfile.open(path, "w") as tar:
        for i, row in enumerate(table):
            members = {
                "png": row["image"],
                "cls": str(row["label"]).encode(),
                "txt": row["text"].encode(),
                "json": json.dumps({"score": row["score"]}).encode(),
            }
            for ending, content in members.items():
                info = tarfile.TarInfo(f"folder/{i:05d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_dataset(path, table):
    """The folder that `save_to_disk` of Hugging Face `datasets` writes."""
    features = {"text": Value("string"), "score": Value("float64")}
    features["label"] = Value("string") if isinstance(table[0]["label"], str) else Value("int64")
    named = columns(
        [row | ({"image": {"bytes": row["image"], "path": None}} if "image" in row else {}) for row in table]
    )
    kinds = Features({name: features.get(name, HFImage()) for name in named})
    datasets.disable_progress_bars()
    Dataset.from_dict(named, features=kinds).save_to_disk(path)


def packed(write):
    """A writer of a compressed file."""

    def compressed(path, table):
        write(path, table)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return compressed


WRITERS = {
    "parquet": ("parquet", "x.parquet", write_parquet),
    "csv": ("csv", "x.csv", write_csv),
    "csv.gz": ("csv", "x.csv.gz", packed(write_csv)),
    "tsv": ("tsv", "x.tsv", write_tsv),
    "jsonl": ("jsonl", "x.jsonl", write_jsonl),
    "jsonl.gz": ("jsonl", "x.jsonl.gz", packed(write_jsonl)),
    "array_record of examples": ("array_record", "x.array_record", record_writer(example)),
    "array_record of msgpack": ("array_record", "x.array_record", record_writer(msgpack.packb)),
    "webdataset": ("webdataset", "x.tar", write_tar),
    "hf": ("hf", "folder", write_dataset),
    "webdataset.gz": ("webdataset", "x.tar.gz", packed(write_tar)),
}
WITH_IMAGES = [name for name in WRITERS if "sv" not in name and "json" not in name]


@pytest.fixture
def source_of(tmp_path, monkeypatch):
    """A function format -> URI of the rows in this format."""
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path / "cache"))

    def write(name, table=None, file=None):
        kind, own, writer = WRITERS[name]
        path = tmp_path / (file or own)
        writer(path, list(rows()) if table is None else table)
        return f"{kind}:{path}"

    return write


def keys_of(name):
    score = "json.score" if "webdataset" in name else "score"
    keys = {"label": "label", "text": "text", "score": score}
    return keys | ({"image": "image"} if name in WITH_IMAGES else {})


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_holds_the_same_rows(name, source_of, config):
    arrays = load_split(config(source=source_of(name), keys=keys_of(name), seq_len=64, mode="documents"), "train")
    table = list(rows())
    np.testing.assert_array_equal(arrays["label"], [row["label"] for row in table])
    np.testing.assert_array_equal(arrays["score"], [row["score"] for row in table])
    for tokens, valid, row in zip(arrays["tokens"], arrays["segment_ids"], table):
        text = row["text"].replace("\n", " ") if name == "tsv" else row["text"]
        assert bytes(t for t in tokens[valid > 0] if t < 256).decode() == text
    if name in WITH_IMAGES:
        for image, row in zip(arrays["image"], table):
            np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(row["image"]))))


@pytest.mark.parametrize("name", WRITERS)
def test_batches_depend_on_seed_and_step_only(name, source_of, config):
    """Opened anew, on one process or two, with images decoded once or at each use: the same batches."""
    data = {"source": source_of(name), "keys": keys_of(name), "seq_len": 64, "mode": "documents", "image_size": 5}
    first = open_data(config(**data, images="decoded"), batch_size=6, seed=3)
    again = open_data(config(**data, images="encoded"), batch_size=6, seed=3)
    seen = []
    for step in (7, 0, 1, 2, 3, 7):
        whole = first.batch(step)
        halves = [again.batch(step, lambda rows: np.split(np.arange(rows), 2)[p]) for p in (0, 1)]  # noqa: B023
        for key, array in whole.items():
            np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), array)
        np.testing.assert_array_equal(first.ids(step), whole["id"])
        assert len(set(whole["id"])) == 6
        seen += whole["id"].tolist() if step in (0, 1, 2, 3) else []
    assert set(seen[:COUNT]) == set(range(COUNT)), "an epoch has every row once"


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_one_line(name, source_of, config, tmp_path):
    source = source_of(name)
    path = next(p for p in tmp_path.rglob("*") if p.is_file() and p.suffix not in (".json", ".lock"))
    content = path.read_bytes()
    keys = {"label": "label"}
    for damaged in (content[: len(content) // 3], b"", bytes(200) + content[200:]):
        path.write_bytes(damaged)
        try:
            arrays = load_split(config(source=source, keys=keys), "train")
        except UserError as error:
            assert "\n" not in str(error) and (str(path) in str(error) or name == "hf")
        else:  # the rows that are whole
            table = [row["label"] for row in rows()]
            assert arrays["label"].tolist() == table[: len(arrays["label"])]


BETWEEN = [name for name in WRITERS if WRITERS[name][0] in ("array_record", "jsonl", "webdataset")]


@pytest.mark.parametrize(
    ("name", "texts"),
    [(name, texts) for name in BETWEEN for texts in (False, True) if not texts or "webdataset" not in name],
)
def test_labels_between_images_are_read_once(name, texts, source_of, config, monkeypatch):
    """Later starts read numbers and names of classes from the folder of caches; changed files are read again."""
    monkeypatch.setattr("ssljax.data.columns._FEW", COUNT)
    table = [row | {"label": f"class {row['label']}" if texts else row["label"]} for row in rows()]
    data = {"keys": keys_of(name), "seq_len": 64, "mode": "documents", "images": "encoded"}
    source = source_of(name, table)
    first = load_split(config(source=source, **data), "train[30%:]")
    np.testing.assert_array_equal(first["label"], [row["label"] for row in rows()][6:])
    np.testing.assert_array_equal(first["score"], [row["score"] for row in rows()][6:])
    with monkeypatch.context() as later:
        later.setattr("ssljax.data.sources.OnDemand.__iter__", lambda self: pytest.fail("the column is read again"))
        again = open_data(config(source=source, **data), batch_size=8).batch(0)
    assert [table[i]["label"] for i in again["id"]] == [f"class {i}" if texts else i for i in again["label"]]
    changed = load_split(config(source=source_of(name, table[::-1]), **data), "train[30%:]")
    np.testing.assert_array_equal(changed["label"], [row["label"] for row in rows()][::-1][6:])


@pytest.mark.parametrize(
    "values",
    [[0, None], [0, True], [0, 0.5], [0, 2**70], [2**63, -1], ["\ud83d", "a"], ["a", 1], ["a", "b" * 99], ["a\0", "b"]],
)
def test_columns_of_several_kinds_are_not_kept(values, tmp_path):
    column = OnDemand(2, values.__getitem__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssljax.data.columns._FEW", 2)
        found = kept(column, values, "label", tmp_path)
    assert found is column or (list(found) == values and all(type(a) is type(b) for a, b in zip(found, values)))


@pytest.fixture
def bucket():
    """A remote storage, which is empty: a function (address, content) writes a file."""
    storage = fsspec.filesystem("memory")
    yield lambda address, content: storage.pipe({address.removeprefix("memory:/"): content})
    storage.store.clear()


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "hf"])
def test_remote_files_hold_the_same_rows(name, source_of, config, bucket, tmp_path):
    """Rows, batches and identity of remote files are those of the local ones; a changed file is another one."""
    source, (kind, file, _) = source_of(name), WRITERS[name]
    bucket(f"memory://bucket/deep folder/train-{file}", (tmp_path / file).read_bytes())
    remote = f"{kind}:memory://bucket/*/{{split}}-*"
    data = {"keys": keys_of(name), "seq_len": 64, "mode": "documents"}
    local, far = (load_split(config(source=uri, **data), "train") for uri in (source, remote))
    assert local.keys() == far.keys()
    for key in local:
        np.testing.assert_array_equal(local[key], far[key])
    specs = [describe(config(source=uri, **data)) for uri in (source, remote)]
    assert list(specs[0].content.values()) == list(specs[1].content.values())
    bucket(f"memory://bucket/deep folder/train-{file}", (tmp_path / file).read_bytes()[:-3] + b"xyz")
    if name == "jsonl":
        with pytest.raises(UserError, match=r"memory://bucket/deep folder/train-x.jsonl:23: not valid JSON"):
            load_split(config(source=remote, **data), "train")


def test_remote_pictures_and_texts(config, bucket):
    for i, row in enumerate(rows(6)):
        bucket(f"memory://bucket/pictures/{'ab'[i % 2]}/{i}.png", row["image"])
        bucket(f"memory://bucket/texts/{i}.txt", row["text"].encode())
    pictures = config(source="images:memory://bucket/pictures", image_size=5, images="encoded")
    assert describe(pictures).classes == ("a", "b")
    assert sorted(open_data(pictures, batch_size=6).batch(0)["label"]) == [0, 0, 0, 1, 1, 1]
    texts = load_split(config(source="text:memory://bucket/texts/[0-3].txt", seq_len=64, mode="documents"), "train")
    assert bytes(t for t in texts["tokens"][3] if t < 256).decode() == list(rows(4))[3]["text"]


def test_remote_folders_are_read_as_local_ones(config, bucket, tmp_path):
    """A file or folder may have the name of the folder that it lies in."""
    table = list(rows(4))
    for place in ("pets/pets/0.png", "pets/dogs/1.png", "pets/dogs/dogs/2.png"):
        bucket(f"memory://bucket/{place}", table[0]["image"])
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(table[0]["image"])
    for pattern in ("pets", "pets/dogs", "pe*"):
        found = [
            load_split(
                config(source=f"images:{root}/{pattern}", keys={"image": "image", "label": "folder"}, image_size=5),
                "train",
            )
            for root in ("memory://bucket", tmp_path)
        ]
        assert found[0].classes == found[1].classes and len(found[0]["label"]) == len(found[1]["label"])


def test_a_remote_npz_is_read(config, bucket):
    file = io.BytesIO()
    np.savez(file, label=np.arange(5))
    bucket("memory://bucket/train.npz", file.getvalue())
    assert load_split(config(source="npz:memory://bucket/{split}.npz"), "train")["label"].tolist() == [0, 1, 2, 3, 4]


class WholeFiles(MemoryFileSystem):
    """A storage that sends the whole file for any range, as some servers do, and tells versions by an ETag only."""

    protocol = "whole"
    tag = "1"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("whole://", "memory://"))

    def cat_ranges(self, paths, starts, ends, **options):
        return [self.cat_file(path) for path in paths]

    def ukey(self, path):
        return path

    def info(self, path, **options):
        return {**super().info(path, **options), "ETag": self.tag}


def test_a_storage_without_ranges_is_refused_and_versions_are_noticed(monkeypatch):
    fsspec.register_implementation("whole", WholeFiles, clobber=True)
    storage = fsspec.filesystem("whole")
    storage.pipe({"/b/x.bin": b"0123456789"})
    path = UPath("whole://b/x.bin")
    assert read_ranges([(path, 0, 10)]) == [b"0123456789"]
    with pytest.raises(OSError, match=r"sent 10 bytes of \S+x.bin instead of 3"):
        read_ranges([(path, 2, 5)])
    before = state_of(path)
    monkeypatch.setattr(WholeFiles, "tag", "2")
    assert state_of(path) != before
    storage.store.clear()


def test_kept_labels_notice_a_change_that_hides_its_time(config, tmp_path, monkeypatch):
    monkeypatch.setattr("ssljax.data.columns._FEW", 3)
    path, found = tmp_path / "x.jsonl", []
    for labels in ([0, 1, 2], [1, 2, 0]):
        path.write_text("".join(json.dumps({"label": label}) + "\n" for label in labels))
        os.utime(path, (1, 1))
        found.append(load_split(config(source=f"jsonl:{path}"), "train")["label"].tolist())
    assert found == [[0, 1, 2], [1, 2, 0]]


def test_rows_that_are_not_selected_need_no_label(config, tmp_path, monkeypatch):
    monkeypatch.setattr("ssljax.data.columns._FEW", 3)
    (tmp_path / "x.jsonl").write_text('{"label": 1}\n{"label": 0}\n{"other": 2}\n')
    assert load_split(config(source=f"jsonl:{tmp_path}/x.jsonl"), "train[:2]")["label"].tolist() == [1, 0]
    monkeypatch.setenv("SSLJAX_CACHE", "/dev/null/cache")
    assert kept(OnDemand(3, [3, 4, 5].__getitem__), 1, "label", pathlib.Path("/dev/null/cache"))[1] == 4


def test_datasets_in_memory_have_identities(config, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 10**9)
    sources = []
    for i in (0, 1):
        write_dataset(tmp_path / str(i), [{"text": f"{i}", "label": i, "score": 0.5}])
        sources.append(open_source(f"hf:{tmp_path}/{i}"))
    assert sources[0].fingerprint(Split("train")) != sources[1].fingerprint(Split("train"))
    assert sources[0].content(Split("train")) != sources[1].content(Split("train"))


@pytest.mark.parametrize("values", [[np.int64(2), np.int64(0)], [np.float32(0.5), np.float32(1)], [np.bool_(True)] * 2])
def test_scalars_of_numpy_are_numbers(values, config, monkeypatch):
    class Own:
        def __init__(self, location):
            pass

        def fingerprint(self, split):
            return [repr(values)]

        def table(self, split):
            return Table(("y",), lambda name: OnDemand(2, values.__getitem__))

    monkeypatch.setitem(sys.modules, "own", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "own.source", types.SimpleNamespace(Own=Own))
    data = config(source="own.source:Own:x", keys={"y": "y"}, where={"y": values[0].item()})
    assert load_split(data, "train")["y"].tolist() == [v for v in values if v == values[0]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("text:memory://*/x.txt", r"data.source: memory://\*/x.txt: the part before the first / of an address must be"),
        ("parquet:memory://bucket/none-*.parquet", r"data.source: memory://bucket/none-\*.parquet matches no file"),
        ("text:memory://bucket/none.txt", r"data.source: memory://bucket/none.txt does not exist"),
        ("text:nowhere://bucket/x.txt", r"data.source: cannot open nowhere://bucket/"),
        ("text:s3://bucket/x.txt", r"data.source: s3://bucket/ needs another library \(Install s3fs to access S3\)"),
        ("images:memory://bucket", r"data.source: memory://bucket is not a folder"),
    ],
)
def test_addresses_without_files_are_one_line(source, message, config, bucket, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=f"^{message}"):
        load_split(config(source=source, seq_len=8), "train")


@pytest.mark.parametrize("kept", ["decoded", "encoded"])
def test_squeezed_pictures_have_all_pixels_and_their_aspect(kept, source_of, config):
    source = source_of("parquet")
    data = config(source=source, keys={"image": "image"}, image_size=5, image_fit="squeeze", images=kept)
    batch = open_data(data, batch_size=4).batch(0)
    table = list(rows())
    for i, pixels, aspect in zip(batch["id"], batch["image"], batch["aspect"]):
        picture = Image.open(io.BytesIO(table[i]["image"]))
        np.testing.assert_array_equal(pixels, np.asarray(picture.resize((5, 5), Image.Resampling.BILINEAR)))
        assert aspect == np.float32(picture.width / picture.height) == np.float32(1.5)


def test_several_files_and_splits(source_of, config):
    """Files are read in the order of their names; `{split}` names a split."""
    table = list(rows())
    source_of("parquet", table[:9], "train-0.parquet")
    source_of("parquet", table[9:], "train-1.parquet")
    source = source_of("parquet", table[:4], "test-0.parquet").replace("/test-0", "/{split}-*")
    data = config(source=source, keys={"label": "label"})
    assert load_split(data, "train")["label"].tolist() == [row["label"] for row in table]
    assert load_split(data, "test")["label"].tolist() == [row["label"] for row in table[:4]]
    source_of("parquet", [{"label": "cat"}], "train-2.parquet")
    with pytest.raises(UserError, match=r"train-2.parquet differ from those of .*train-0.parquet \(image: binary, .*"):
        load_split(data, "train")


@pytest.mark.parametrize("labels", [[0, None], ["a", None], [0, 2**40], [0.5, 1.5], [[1, 2], [3]]])
def test_values_that_are_no_labels_are_one_line(labels, tmp_path, config):
    pq.write_table(pa.table({"label": labels}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="label") as error:
        load_split(config(source=f"parquet:{tmp_path}/x.parquet"), "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in WRITERS if "webdataset" not in name])
def test_labels_that_are_texts_are_names_of_classes(name, source_of, config):
    """Classes have the order of the alphabet, and are those of the whole split."""
    source = source_of(name, [{"label": label} for label in ("cat", "ant", "dog", "cat")])
    arrays = load_split(config(source=source), "train[1:]")
    assert arrays.classes == ("ant", "cat", "dog") and arrays["label"].tolist() == [0, 2, 1]
    data = config(source=source, where={"label": ["cat", "dog"]})
    assert load_split(data, "train")["label"].tolist() == [1, 2, 1]


def test_classes_that_datasets_writes_into_a_file_are_found(tmp_path, config):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"label": [1, 0]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    assert load_split(config(source=f"parquet:{tmp_path}/x.parquet"), "train").classes == ("cat", "dog")


def test_an_order_of_blocks_mixes_a_few_at_a_time():
    blocks = RowBlocks(np.arange(0, 1001, 25), mixed=4)
    orders = [permutation(1000, 1, epoch, blocks=blocks)(np.arange(1000)) for epoch in range(2)]
    for order in orders:
        assert sorted(order) == list(range(1000))
        windows = order.reshape(10, 100) // 25
        assert all(len(set(window)) == 4 for window in windows), "each window has the rows of four blocks"
        assert all((np.diff(window) != 0).mean() > 0.5 for window in windows), "and mixes them"
    assert len({tuple(sorted(set(w))) for order in orders for w in order.reshape(10, 100) // 25}) > 10


@pytest.mark.parametrize("mixed", [1, 3, 100])
def test_blocks_of_uneven_sizes_have_every_row_once_in_any_part(mixed):
    sizes = np.random.default_rng(0).integers(1, 50, 23)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    order = permutation(starts[-1], 1, 2, blocks=RowBlocks(starts, mixed))
    rows = order(np.arange(starts[-1]))
    assert sorted(rows) == list(range(starts[-1]))
    part = np.random.default_rng(1).permutation(starts[-1])[:100]
    np.testing.assert_array_equal(order(part), rows[part])


def test_blocks_of_selected_rows():
    blocks = RowBlocks(np.array([0, 4, 8, 9, 20]), mixed=2)
    assert blocks.of(np.arange(20)).starts.tolist() == [0, 4, 8, 9, 20]
    assert blocks.of(np.array([1, 3, 8, 12, 13])).starts.tolist() == [0, 2, 3, 5]


def test_row_groups_are_read_about_once_in_an_epoch(tmp_path, config, monkeypatch):
    import ssljax.data.arrow as arrow

    table = list(rows(64))
    pq.write_table(pa.table(columns(table)), tmp_path / "x.parquet", row_group_size=4)
    size = len(table[0]["image"]) * 4
    monkeypatch.setattr(arrow, "_KEPT", 10 * size)
    monkeypatch.setattr(arrow, "_MIXED", 4 * size)
    read, original = [], pq.ParquetFile.read_row_group

    def counted(self, group, *arguments, **options):
        read.append(group)
        return original(self, group, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    data = config(source=f"parquet:{tmp_path}/x.parquet", keys={"image": "image"}, images="encoded")
    dataset = open_data(data, batch_size=8, seed=0)
    read.clear()
    for step in range(8):
        dataset.batch(step)
    assert {0, *read} == set(range(16)), "the first row group is in memory from the start"
    assert len(read) <= 24


@pytest.mark.parametrize(("kind", "separator"), [("csv", ","), ("tsv", "\t")])
def test_names_of_columns_that_a_file_lacks(kind, separator, config, tmp_path, monkeypatch):
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path / "cache"))
    lines = [f"text {i}{separator}{i % 2}\n" for i in range(6)]
    (tmp_path / "a#1.txt").write_text("".join(lines))
    source = f"{kind}:{tmp_path}/a#1.txt"
    named = load_split(config(source=f"{source}#text,label", seq_len=64, mode="documents"), "train")
    assert named["label"].tolist() == [0, 1, 0, 1, 0, 1] and len(named["tokens"]) == 6
    with pytest.raises(UserError, match=r"'label'.*text 0"):
        load_split(config(source=source, keys={"label": "label"}), "train")
    with pytest.raises(UserError, match=r"a#1\.txt is damaged or not a table of values separated by .*columns"):
        load_split(config(source=f"{source}#one,two,three", keys={"label": "two"}), "train")


def test_quotes_in_tab_separated_values_are_text(config, tmp_path, monkeypatch):
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a quote that does not end\t1\nplain, with a comma\t0\n')
    arrays = load_split(config(source=f"tsv:{tmp_path}/a.tsv", seq_len=64, mode="documents"), "train")
    texts = [bytes(t for t in row if 0 < t < 256).decode().strip("\0") for row in arrays["tokens"]]
    assert texts == ['"a quote that does not end', "plain, with a comma"] and arrays["label"].tolist() == [1, 0]


def test_one_file_read_in_several_ways_has_several_caches(config, tmp_path):
    """Before, caches of tokens were named after the file only: the second way had the tokens of the first."""
    path = tmp_path / "x"
    path.write_text('{"text": "a, b"}\t{"c": 1}\n')
    sources = ["text:{}", "csv:{}#text,other", "csv:{}#other,text", "tsv:{}#text,other", "tsv:{}#other,text"]
    found = []
    for source in sources:
        data = config(source=source.format(path), keys={"text": "text"}, seq_len=64, mode="documents")
        tokens = load_split(data, "train")["tokens"][0]
        found.append(bytes(t for t in tokens if 0 < t < 256))
    assert len(set(found)) == len(sources), found


def test_names_of_columns_are_what_they_look_like(config, tmp_path):
    for name in ("a", "a#text"):
        (tmp_path / name).write_text("text,label\nx,1\n" if "#" in name else "y,0\n")
    read = lambda source: load_split(config(source=source, keys={"label": "label"}), "train")["label"].tolist()  # noqa: E731
    assert read(f"csv:{tmp_path}/a#text, label") == [0], "spaces beside commas are no part of a name"
    assert read(f"csv:{tmp_path}/a#text") == [1], "a file of this name exists"
    with pytest.raises(UserError, match="'label' twice"):
        read(f"csv:{tmp_path}/a#label,label")
