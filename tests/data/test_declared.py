"""Declared data has the description that the same data would have, and cannot be read."""

import dataclasses

import numpy as np
import pytest

from ssljax import data
from ssljax.base.errors import UserError
from ssljax.data import selection

ROWS, SIDE, CLASSES = 12, 8, 3


@pytest.fixture
def npz(tmp_path):
    images = np.zeros((ROWS, SIDE, SIDE, 3), np.uint8)
    np.savez(tmp_path / "x.npz", image=images, label=np.arange(ROWS) % CLASSES)
    return f"npz:{tmp_path / 'x.npz'}"


@pytest.fixture
def jsonl(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "abcdefghi"}\n' * ROWS)  # 10 tokens each, with the end token
    return f"jsonl:{tmp_path / 'x.jsonl'}"


def same(declared, real, tmp_path, **keys):
    """Compares everything that shapes and lengths depend on."""
    keys = {"cache_dir": str(tmp_path / "cache"), **keys}
    ours, theirs = (data.describe(data.DataConfig(source=source, **keys)) for source in (declared, real))
    for name in ("elements", "size", "num_classes", "vocab_size", "max_len", "tokens", "streams", "order"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert set(theirs.special_ids) <= set(ours.special_ids)
    assert ours == data.DataSpec.from_json(ours.to_json())
    return ours


@pytest.mark.parametrize(
    "keys",
    [{}, {"split": "train[:50%]"}, {"split": "train[-5:]"}, {"max_examples": 7}, {"keys": {"image": "image"}}],
)
def test_images_are_described_as_if_they_were_here(keys, npz, tmp_path):
    same(f"declared:rows={ROWS},image={SIDE}x{SIDE}x3,label={CLASSES}", npz, tmp_path, **keys)


@pytest.mark.parametrize("fit", ["center", "squeeze"])
def test_resized_images_have_the_size_of_the_config(fit, tmp_path):
    from PIL import Image

    (tmp_path / "pictures" / "a").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(tmp_path / "pictures" / "a" / "0.png")
    keys = {"image_size": 4, "image_fit": fit}
    same("declared:rows=1,image=10x20x3,label=1", f"images:{tmp_path / 'pictures'}", tmp_path, **keys)


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("seq_len", [7, 16, 120])
def test_windows_of_text(overlap, seq_len, jsonl, tmp_path):
    same(f"declared:tokens={10 * ROWS},text=260", jsonl, tmp_path, seq_len=seq_len, overlap=overlap)


def test_packed_text_fills_its_rows(jsonl, tmp_path):
    same(f"declared:tokens={10 * ROWS},text=260", jsonl, tmp_path, seq_len=20, mode="packed")


def test_documents_that_fill_their_rows(jsonl, tmp_path):
    same(f"declared:rows={ROWS},text=260", jsonl, tmp_path, seq_len=11, mode="documents")


def test_a_mixture_and_streams_add_up():
    parts = tuple(data.MixturePart(source=f"declared:tokens={n},text=100", weight=w) for n, w in ((64, 3), (160, 1)))
    stream = {"more": data.StreamPart(source="declared:tokens=320,text=100", ratio=2.0)}
    spec = data.describe(data.DataConfig(mixture=parts, streams=stream, seq_len=16))
    assert spec.size == 14 and spec.tokens == 224 and spec.streams["more"]["size"] == 20
    batch = spec.zeros(4)
    assert batch["tokens"].shape == (4, 16) and batch["more"]["tokens"].shape == (8, 16)


def test_numbers_have_suffixes_and_a_large_declaration_costs_no_memory():
    spec = data.describe(data.DataConfig(source="declared:tokens=300B,text=50257", seq_len=2000))
    assert spec.size == 150_000_000 and spec.tokens == 3 * 10**11
    assert data.describe(data.DataConfig(source="declared:rows=1.5k,image=2x3x1")).size == 1500


def test_reading_is_refused_in_one_line():
    dataset = data.open_data(data.DataConfig(source="declared:rows=8,image=4x4x3"), 4)
    assert dataset.batch_size == 4 and dataset.epoch(2) == 1
    for read in (lambda: dataset.batch(0), lambda: dataset.ids(0)):
        with pytest.raises(UserError) as error:
            read()
        assert str(error.value) == "data.source: declared data has shapes only; set data.source=... to train"
    with pytest.raises(UserError, match="shapes only"):
        selection.read(data.SourceConfig("declared:rows=8,image=4x4x3"))


@pytest.mark.parametrize(
    ("source", "keys", "message"),
    [
        ("declared:", {}, "unknown key '' of declared data"),
        ("declared:rows=8", {}, "no column of image, label, text"),
        ("declared:row=8,image=4x4x3", {}, "unknown key 'row'.*did you mean 'rows'"),
        ("declared:image=4x4x3", {}, "must give rows"),
        ("declared:rows=8,image=4x4", {}, "must be HEIGHTxWIDTHxCHANNELS"),
        ("declared:rows=8,image=0x4x3", {}, "must be HEIGHTxWIDTHxCHANNELS"),
        ("declared:rows=many,image=4x4x3", {}, "rows=many of declared data must be a number"),
        ("declared:rows=1.5,image=4x4x3", {}, "must be a number"),
        ("declared:rows=0,image=4x4x3", {}, "must be a number"),
        ("declared:rows=8,text=100", {"seq_len": 4}, "must give tokens"),
        ("declared:tokens=8,text=100", {}, "data.seq_len: missing"),
        ("declared:tokens=8,text=7", {"seq_len": 4}, "declares 7 token ids, must be > 7"),
        ("declared:tokens=8,text=100", {"seq_len": 16}, "has no example"),
        ("declared:rows=8,tokens=8,image=4x4x3,text=100", {"seq_len": 4}, "use 'documents'"),
        ("declared:rows=8,image=4x4x3", {"keys": {"image": "jpg"}}, "has the columns image under these names"),
        ("declared:rows=8,image=4x4x3", {"where": {"label": 1}}, "data.where could filter"),
        ("declared:rows=8,image=4x4x3,label=10", {"num_classes": 5}, "must be at least the 10 declared classes"),
        ("declared:rows=8,image=4x4x3+builtin:digits", {}, "joins declared data with other data"),
    ],
)
def test_mistakes_are_one_line(source, keys, message):
    with pytest.raises(UserError, match=message) as error:
        data.describe(data.DataConfig(source=source, **keys))
    assert "\n" not in str(error.value)


def test_declared_and_real_sources_do_not_mix():
    parts = tuple(data.MixturePart(source=s) for s in ("declared:rows=8,image=8x8x1,label=10", "builtin:digits"))
    with pytest.raises(UserError, match="declare all or none"):
        data.describe(data.DataConfig(mixture=parts))
    vocabularies = tuple(data.MixturePart(source=f"declared:tokens=64,text={n}") for n in (100, 200))
    with pytest.raises(UserError, match="give one"):
        data.describe(data.DataConfig(mixture=vocabularies, seq_len=16))


def test_the_content_of_the_declaration_is_part_of_the_identity():
    one, other = (data.describe(data.DataConfig(source=f"declared:rows={n},image=4x4x3")) for n in (8, 9))
    assert one.content != other.content
    assert dataclasses.replace(one, size=9, content=other.content) == other
