"""Batches are a pure function of (seed, step)."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ssljax.base import schema
from ssljax.base.errors import UserError
from ssljax.config import load
from ssljax.data import DataConfig, DataSpec, describe, load_split, open_data

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def numbered(tmp_path):
    """Two sources, a and b, whose `label` is the row number (plus 1000 in b)."""
    np.savez(tmp_path / "a.npz", label=np.arange(37), image=np.arange(37 * 16).astype(np.uint8).reshape(37, 4, 4))
    np.savez(tmp_path / "b.npz", label=np.arange(11) + 1000, image=np.zeros((11, 4, 4), np.uint8))
    return {name: f"npz:{tmp_path}/{name}.npz" for name in "ab"}


def labels_of(dataset, steps):
    """Returns the labels of the first `steps` batches."""
    return np.concatenate([dataset.batch(step)["label"] for step in range(steps)])


def test_epochs(config, numbered):
    dataset = open_data(config(source=numbered["a"]), 8, seed=3)
    labels = labels_of(dataset, 37)  # exactly 8 epochs
    epochs = labels.reshape(8, 37)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(37))
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert [dataset.epoch(step) for step in (0, 4, 5, 36)] == [0, 0, 1, 7]


def test_a_batch_depends_on_seed_and_step_only(config, numbered):
    data = config(source=numbered["a"])
    dataset = open_data(data, 8, seed=3)
    labels = labels_of(dataset, 12)
    for step in (11, 4, 0, 7):  # in any order, from a new dataset
        batch = open_data(data, 8, seed=3).batch(step)
        np.testing.assert_array_equal(batch["label"], labels[step * 8 : step * 8 + 8])
        np.testing.assert_array_equal(dataset.ids(step), batch["id"])
        assert batch["id"].dtype == np.int64
    assert (labels_of(open_data(data, 8, seed=4), 12) != labels).any()
    # data.seed takes precedence over the seed of the run.
    pinned = dataclasses.replace(data, seed=3)
    np.testing.assert_array_equal(labels_of(open_data(pinned, 8, seed=9), 12), labels)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 50))
def test_processes_share_one_batch(config, numbered, processes, step):
    streams = {"extra": {"source": numbered["b"], "ratio": 2}}
    dataset = open_data(config(source=numbered["a"], streams=streams), 8, seed=1)
    whole = dataset.batch(step)
    parts = [dataset.batch(step, lambda rows: np.split(np.arange(rows), processes)[p]) for p in range(processes)]  # noqa: B023
    for key in ("id", "label", "image"):
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), whole[key])
        joined = np.concatenate([part["extra"][key] for part in parts])
        np.testing.assert_array_equal(joined, whole["extra"][key])


def test_no_batch_of_the_quickstart_has_an_example_twice(config):
    """Before, 86 of its 500 batches had: false negatives of a contrastive loss."""
    run, _ = load(f"{ROOT}/configs/quickstart.py")
    dataset = open_data(config(source="builtin:digits"), run.batch_size, run.seed)
    ids = [dataset.ids(step) for step in range(run.steps)]
    assert sum(len(set(i)) < len(i) for i in ids) == 0
    seen = np.bincount(np.concatenate(ids), minlength=1437)
    assert seen.max() - seen.min() <= 1


def test_a_batch_larger_than_the_data_says_so(config, numbered, caplog):
    mixture = [{"source": numbered["a"], "weight": 1}, {"source": numbered["b"], "weight": 3}]
    for keys, lines in (
        ({"source": numbered["a"]}, ["batch_size: a batch takes 40 examples of 37, so it has some more than once"]),
        ({"source": numbered["a"], "split": "train[:20]"}, ["batch_size: a batch takes 40 examples of 20"]),
        ({"mixture": mixture}, ["batch_size: a batch takes 30 examples of 11"]),
    ):
        caplog.clear()
        dataset = open_data(config(**keys), 40)
        assert [r.getMessage()[: len(line)] for r, line in zip(caplog.records, lines, strict=True)] == lines
        assert len(dataset.batch(0)["id"]) == 40
    caplog.clear()
    open_data(config(source=numbered["a"]), 37)
    assert not caplog.records


def test_another_process_gives_equal_batches(config, numbered):
    data = config(source=numbered["a"])
    code = (
        "from ssljax.data import *; import numpy as np;"
        f"d = open_data(DataConfig(source={numbered['a']!r}), 8, 5); print([d.ids(s).tolist() for s in range(9)])"
    )
    env = os.environ | {"PYTHONHASHSEED": "77"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    dataset = open_data(data, 8, 5)
    assert out.stdout.strip() == str([dataset.ids(step).tolist() for step in range(9)])


def test_mixture(config, numbered):
    mixture = [{"source": numbered["a"], "weight": 3}, {"source": numbered["b"], "split": "train[:10]", "weight": 1}]
    data = config(mixture=mixture)
    dataset = open_data(data, 8, seed=0)
    spec = describe(data)
    assert spec.size == 47 and spec.num_classes == 1010
    batches = [dataset.batch(step) for step in range(37 * 10)]
    for batch in batches:
        assert (batch["label"] >= 1000).sum() == 2  # exact shares in every batch
        from_b = batch["label"] >= 1000
        np.testing.assert_array_equal(batch["id"] >> 40, from_b)
        np.testing.assert_array_equal(batch["id"] & (1 << 40) - 1, batch["label"] - 1000 * from_b)
    labels = np.concatenate([batch["label"] for batch in batches])
    own = labels[labels >= 1000][:740].reshape(-1, 10)  # epochs of each source
    assert (np.sort(own, axis=1) == np.arange(1000, 1010)).all()
    own = labels[labels < 1000][: 37 * 60].reshape(-1, 37)
    assert (np.sort(own, axis=1) == np.arange(37)).all()
    with pytest.raises(UserError, match=r"data.source: missing"):
        load_split(data, "test")


def test_sources_of_a_mixture_must_have_one_form(config, numbered):
    mixture = [{"source": numbered["a"]}, {"source": numbered["b"], "keys": {"label": "label"}}]
    with pytest.raises(UserError, match=r"data.mixture: sources must have equal keys, shapes and dtypes"):
        describe(config(mixture=mixture))


def test_streams(config, numbered):
    data = config(
        source=numbered["b"], streams={"unlabeled": {"source": numbered["a"], "ratio": 1.5, "split": "train[5:]"}}
    )
    dataset = open_data(data, 4, seed=0)
    batch = dataset.batch(3)
    assert batch["label"].shape == (4,) and batch["unlabeled"]["label"].shape == (6,)
    labels = np.concatenate([dataset.batch(step)["unlabeled"]["label"] for step in range(32)])[:192]
    for start in range(0, 192, 32):
        np.testing.assert_array_equal(np.sort(labels[start : start + 32]), np.arange(5, 37))
    spec = DataSpec.from_json(describe(data).to_json())
    assert spec == describe(data)
    zeros = spec.zeros(4)
    for found, made in ((batch, zeros), (batch["unlabeled"], zeros["unlabeled"])):
        assert found.keys() == made.keys()
        for key in found.keys() - {"unlabeled"}:
            assert found[key].shape == made[key].shape and found[key].dtype == made[key].dtype
    with pytest.raises(UserError, match=r"data.streams.unlabeled.ratio: .* is 4.5, must be a whole number"):
        open_data(data, 3)


def test_a_stream_without_a_source_reads_that_of_the_data(config, numbered):
    whole = config(source=numbered["a"], split="train[:4]", streams={"x": {"ratio": 2.0}})
    assert whole.streams["x"].source == numbered["a"] and whole.streams["x"].split == "train"
    named = config(source=numbered["a"], split="train[:4]", streams={"x": {"source": numbered["a"], "ratio": 2.0}})
    assert whole == named
    keys = config(source=numbered["a"], keys={"label": "label"}, streams={"x": {"ratio": 2.0}}).streams["x"].keys
    assert keys == {"label": "label"}
    dataset = open_data(whole, 4, seed=0)
    assert len({int(i) for step in range(3) for i in dataset.batch(step)["x"]["id"]}) > 4


def test_streams_of_one_source_have_independent_orders(config, numbered):
    more = {"source": numbered["a"]}
    batch = open_data(config(source=numbered["a"], streams={"x": more, "y": more}), 37, seed=0).batch(0)
    orders = {tuple(part["label"]) for part in (batch, batch["x"], batch["y"])}
    assert len(orders) == 3


def test_max_examples(config, numbered):
    data = config(source=numbered["a"], max_examples=10)
    assert describe(data).size == 10
    first, second = (set(labels_of(open_data(data, 5, seed=seed), 20)) for seed in (0, 1))
    assert len(first) == len(second) == 10 and first != second
    split = load_split(data, "train")
    assert len(split["id"]) == 37  # the limit applies to training only
    small = load_split(data, "train", max_examples=10)
    np.testing.assert_array_equal(small["id"], small["label"])
    np.testing.assert_array_equal(small["id"], load_split(data, "train", max_examples=10)["id"])


def test_mixed_text(config, tmp_path):
    for name, letter in (("a", "x"), ("b", "y")):
        (tmp_path / f"{name}.txt").write_text(letter * 400)
    mixture = [{"source": f"text:{tmp_path}/{name}.txt"} for name in "ab"]
    dataset = open_data(config(mixture=mixture, seq_len=8), 6, 0)
    tokens = dataset.batch(2)["tokens"]
    assert sorted(set(tokens.ravel().tolist())) == [ord("x"), ord("y")]
    assert ((tokens == ord("x")).all(1).sum(), (tokens == ord("y")).all(1).sum()) == (3, 3)


def test_the_json_form_of_a_config_and_its_free_keys(config):
    data = config(source="builtin:digits", streams={"more": {"source": "builtin:digits"}})
    values = schema.to_dict(data)
    assert schema.build(DataConfig, values, "data") == data
    assert values.keys() - schema.to_dict(data, free=False).keys() == {
        "prefetch",
        "cache_dir",
        "images",
        "damaged_images",
    }
