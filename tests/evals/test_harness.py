"""The harness with a fake objective: number of extractions and compilations, records, errors."""

import collections
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.base.errors import UserError
from ssljax.data import DataConfig
from ssljax.evals import REGISTRY, Evaluation, Evaluator, build
from ssljax.objectives.base import Loss
from ssljax.report import evaluation_table

SIZES = {"train": 90, "test": 41}
DIGITS = DataConfig(source="builtin:digits")


class Data(dict):
    """Stands for `ssljax.data.SplitArrays`."""

    classes, byte_lengths = ("zero", "one", "two"), np.full(100, 2)


class Objective:
    """Features are a projection of the image. Counts how often its functions are traced."""

    classes, coupled = None, False
    reads_other_rows = property(lambda self: self.coupled)

    def __init__(self):
        self.traces = collections.Counter()

    def prepare(self, batch):
        return {**batch, "image": batch["image"].astype(jnp.float32) / 255}

    def features(self, params, extra, batch):
        self.traces["features"] += 1
        assert "label" not in batch and "note" not in batch
        assert batch["image"].dtype == jnp.float32
        flat = batch["image"].reshape(len(batch["image"]), -1)
        text = jnp.tile(batch["tokens"][:, :1].astype(jnp.float32), (1, 4))
        return {"pooled": flat @ params, "image": flat @ params, "text": text, "map": batch["image"]}

    def scored(self, batch):
        return None

    def score(self, params, extra, batch):
        self.traces["score"] += 1
        return -batch["label"].astype(jnp.float32), jnp.ones(len(batch["label"]))


class Setup:
    def __init__(self, evals, batch_size=32, kept=("id", "image", "label", "tokens", "note"), **options):
        self.loads, self.puts = collections.Counter(), []
        self.objective = Objective()

        def load(config, split, **options):
            self.loads[split, json.dumps(options)] += 1
            if split not in SIZES:
                return Data(id=np.zeros(0, np.int64))
            rng = np.random.default_rng(len(split))
            n = min(SIZES[split], options.get("max_examples", 1000))
            label = rng.integers(3, size=n)
            image = np.clip(rng.normal(60 + 70 * label[:, None, None, None], 20, (n, 3, 3, 1)), 0, 255)
            image[:, 0] = 80 * (label == 1)[:, None, None]
            note = np.array(["x"] * n, object)
            tokens = np.arange(n)[:, None].astype(np.int32)
            arrays = {
                "id": np.arange(n),
                "image": image.astype(np.uint8),
                "label": label,
                "tokens": tokens,
                "note": note,
            }
            return Data({name: arrays[name] for name in kept})

        def put(batch):
            self.puts.append({k: v.shape for k, v in batch.items()})
            return batch

        self.evaluator = Evaluator(self.objective, evals, DIGITS, put, batch_size, load=load, **options)


PARAMS = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
PROBES = {"knn": {"k": 5}, "linear": {"l2": [0.01]}, "nearest": {"type": "knn", "k": 1, "every_steps": 10}}


def test_features_are_extracted_and_compiled_once():
    setup = Setup(PROBES)
    results = setup.evaluator.run(PARAMS, {})
    assert all(r["accuracy"] > 0.8 for r in results.values())
    # 90 and 41 examples in batches of 32, once for all three evaluations.
    assert len(setup.puts) == 3 + 2 and setup.objective.traces["features"] == 1
    assert all(shapes["image"] == (32, 3, 3, 1) for shapes in setup.puts)
    again = setup.evaluator.run(PARAMS, {}, ["knn"])
    assert again["knn"] == results["knn"]
    assert len(setup.puts) == 10 and setup.objective.traces["features"] == 1  # extracted again, but not compiled again
    assert set(setup.loads.values()) == {1}  # host arrays are kept


def test_padding_does_not_change_results():
    small, large = Setup(PROBES, batch_size=7), Setup(PROBES, batch_size=128)
    assert small.evaluator.run(PARAMS, {}) == large.evaluator.run(PARAMS, {})


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_vectors_of_patches_are_laid_side_by_side(name, monkeypatch):
    """With the pixels as patches, the features are the flattened picture, as in the control `raw`."""
    monkeypatch.setattr(Objective, "features", lambda self, params, extra, batch: {"map": batch["image"]})
    evaluator = Setup({name: {"feature": "map"}}, kept=("id", "image", "label")).evaluator
    results, controls = evaluator.run(PARAMS, {}), evaluator.controls(PARAMS, {})
    assert results[name]["accuracy"] == controls["raw"][name]["accuracy"] > 0.6


def test_controls_and_records():
    setup = Setup(PROBES | {"retrieval": {}})
    evaluator = setup.evaluator
    results, controls = evaluator.run(PARAMS, {}), evaluator.controls(np.zeros_like(PARAMS), {})
    assert set(controls) == {"untrained", "raw", "majority", "chance"}
    assert set(controls["raw"]) == set(PROBES) == set(controls["majority"]) and set(controls["chance"]) == {"retrieval"}
    assert controls["untrained"]["linear"]["accuracy"] < 0.6 < controls["raw"]["linear"]["accuracy"]
    assert setup.objective.traces["features"] == 1  # the untrained model uses the same program
    records = evaluator.records(30, results) + evaluator.records(30, controls["raw"], "raw")
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    first = records[0]
    assert (first["step"], first["eval"], first["type"], first["of"]) == (30, "knn", "knn", "trained")
    assert first["settings"]["k"] == 5 and first["settings"]["temperature"] == 0.07 and "k 5" in first["summary"]
    assert first["sizes"] == {"train": 90, "test": 41} and first["headline"] == ["accuracy"]
    nearest = next(r for r in records if r["eval"] == "nearest")
    assert nearest["type"] == "knn" and nearest["settings"]["k"] == 1
    assert records[-1]["of"] == "raw"


def test_scores_and_sizes():
    setup = Setup({"perplexity": {"ngrams": False, "max_examples": 33}})
    result = setup.evaluator.run(None, {})["perplexity"]
    rows = setup.evaluator.splits.loaded.popitem()[1]
    assert result["bits_per_token"] == pytest.approx(rows["label"].mean() / np.log(2), rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(result["bits_per_token"] / 2) and result["scored_tokens"] == 33
    assert setup.objective.traces["score"] == 1


def sums(params, extra, batch, number, count):
    """The term mean(id) with weights id, in the form of `held_out_loss`, and a metric."""
    ids = jnp.where(jnp.arange(len(batch["id"])) < count, batch["id"], 0).astype(jnp.float32)
    return Loss({"a": (2.0, jnp.sum(ids**2), jnp.sum(ids))}, {"accuracy": (jnp.sum(ids), jnp.float32(count))})


def test_a_loss_is_summed_over_the_split_and_has_its_own_batch_size():
    setup = Setup({"loss": {"batch_size": 10}}, loss_fn=sums)
    result = setup.evaluator.run(PARAMS, {})["loss"]
    assert [shapes["id"] for shapes in setup.puts] == [(10,)] * 5  # the last batch has one example and nine copies
    ids = np.arange(41)
    assert result == pytest.approx({"loss": 2 * np.sum(ids**2) / np.sum(ids), "accuracy": 20.0})
    record = setup.evaluator.records(1, {"loss": result})[0]
    assert record["sizes"] == {"test": 41} and "left_out" not in record
    assert record["headline"] == ["loss", "accuracy"] and record["directions"] == {"accuracy": "higher"}


def test_a_coupled_loss_leaves_out_the_last_examples_and_says_so():
    setup = Setup({"loss": {"batch_size": 10}}, loss_fn=sums)
    setup.objective.coupled = True
    result = setup.evaluator.run(PARAMS, {})
    assert [shapes["id"] for shapes in setup.puts] == [(10,)] * 4
    record = setup.evaluator.records(1, result)[0]
    assert record["sizes"] == {"test": 40} and record["left_out"] == {"test": 1}
    assert "test 40 (1 left out)" in evaluation_table([record]).notes[0]


def test_zero_shot_prompts_come_with_blank_images():
    tokenize = lambda texts: {"tokens": np.array([[len(t)] for t in texts], np.int32)}  # noqa: E731
    setup = Setup({"zero_shot": {"templates": ["{}"]}}, tokenize=tokenize)
    result = setup.evaluator.run(PARAMS, {})["zero_shot"]
    assert setup.objective.traces["features"] == 1  # prompts have the form of all other batches
    assert result["accuracy"] == 0  # the fake text embeddings are parallel, and ties count against the model
    with pytest.raises(UserError, match=r"evals\.zero_shot\.classes: got 2 names, must be at least 3"):
        Setup({"zero_shot": {"classes": ["a", "b"]}}, tokenize=tokenize).evaluator.run(PARAMS, {})


def test_a_diverged_model_has_no_metrics():
    setup = Setup(PROBES)
    results = setup.evaluator.run(np.full_like(PARAMS, np.nan), {})
    assert np.isnan(results["knn"]["accuracy"])
    assert setup.evaluator.records(1, results)[0]["metrics"] == {"accuracy": None}


def test_embedding():
    out = Setup({"knn": {}}).evaluator.embedding(PARAMS, {}, "knn", max_examples=20)
    assert out["features"].shape == (20, 4) and out["label"].shape == (20,) and out["images"].shape == (20, 3, 3, 1)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_entry_builds_from_its_defaults(name):
    assert build({name: {}})[name].headline()


@pytest.mark.parametrize(
    "evals, run, message",
    [
        ({"x": {"type": "knnn"}}, False, r"evals\.x\.type: unknown evaluation 'knnn'; did you mean 'knn'"),
        ({"knn": {"kk": 3}}, False, r"evals\.knn\.kk: unknown key; did you mean 'k'"),
        ({"knn": {"k": 0}}, False, r"evals\.knn\.k: got 0, must be >= 1"),
        ({"../x": {"type": "knn"}}, False, r"evals: got the name '../x', must be without / and"),
        ({"a/b": {"type": "knn"}}, False, r"evals: got the name 'a/b', must be without / and"),
        ({"knn": {"test_split": "train"}}, False, r"evals\.knn\.test_split: got 'train', must differ"),
        ({"knn": 3}, False, r"evals\.knn: got 3"),
        ({"knn": {"feature": "pool"}}, True, r"evals\.knn\.feature: the objective gives no 'pool'"),
        ({"knn": {"feature": "map"}}, True, r"evals\.knn\.feature: got 'map' of shape \(90, 3, 3, 1\)"),
        ({"knn": {"fit_split": "valid"}}, True, r"split 'valid' of 'somewhere' is empty"),
        ({"zero_shot": {}}, True, r"evals\.zero_shot\.type: the data of this run has no tokenizer"),
    ],
)
def test_errors_of_a_run(evals, run, message):
    with pytest.raises(UserError, match=message):
        evaluator = Setup({k: v | {"source": "somewhere"} if run else v for k, v in evals.items()}).evaluator
        evaluator.run(PARAMS, {})


SHAPES = jax.ShapeDtypeStruct(PARAMS.shape, PARAMS.dtype)


@pytest.mark.parametrize(
    "name, keys, message",
    [
        ("knn", {"feature": "pool"}, r"evals\.knn\.feature: the objective gives no 'pool'"),
        ("knn", {"feature": "map"}, r"evals\.knn\.feature: got 'map' of shape \(90, 3, 3, 1\)"),
        (
            "knn",
            {"labels_per_class": 40},
            r"evals\.knn\.labels_per_class: got 40, must be at most the \d+ examples of class \d",
        ),
        ("knn", {"fit_split": "trian"}, r"evals\.knn\.fit_split: split 'trian' of 'data' is empty"),
        ("linear", {"select_split": "valid"}, r"evals\.linear\.select_split: split 'valid' of 'data' is empty"),
        (
            "few_shot",
            {"shots": [5, 40]},
            r"evals\.few_shot\.shots: got 40, must be at most the \d+ examples of class \d",
        ),
        ("zero_shot", {}, r"evals\.zero_shot\.type: the data of this run has no tokenizer"),
        ("zero_shot", {"classes": ["a", "b"]}, r"evals\.zero_shot\.classes: got 2 names, must be at least 3"),
        ("retrieval", {"test_split": "tset"}, r"evals\.retrieval\.test_split: split 'tset' of 'data' is empty"),
        ("perplexity", {"fit_split": "trian"}, r"evals\.perplexity\.fit_split: split 'trian' of 'data' is empty"),
    ],
)
def test_the_check_finds_errors_from_shapes_alone(name, keys, message):
    with pytest.raises(UserError, match=message):
        Setup({name: keys | {"source": "data"}}, loss_fn=sums).evaluator.check(SHAPES, {})


def test_the_check_returns_the_metrics_without_loading_whole_splits():
    tokenize = lambda texts: {"tokens": np.array([[len(t)] for t in texts], np.int32)}  # noqa: E731
    named = set(REGISTRY) - {"reconstruction"}  # which reads the codes of an autoencoder
    evals = PROBES | {name: {} for name in named} | {"loss": {"batch_size": 10}, "linear": {"l2": [0.01]}}
    evals |= {"drawn": {"type": "knn", "labels_per_class": 3, "draws": 2}, "nearest": {"type": "knn", "k": 1}}
    setup = Setup(evals, loss_fn=sums, tokenize=tokenize)
    checked = setup.evaluator.check(SHAPES, {})
    assert setup.objective.traces == {"features": 1, "score": 1} and len(setup.puts) < 24
    results = setup.evaluator.run(PARAMS, {})
    assert {name: set(metrics) for name, metrics in results.items()} == {n: set(names) for n, names in checked.items()}
    assert setup.objective.traces == {"features": 1, "score": 1}  # the run uses the programs that the check traced
    alone = Setup({"perplexity": {"max_examples": 7}})
    alone.evaluator.check(SHAPES, {})
    assert {json.loads(options)["max_examples"] for _, options in alone.loads} == {7, 1}


def test_the_default_check():
    """It reads the features of `feature_names`, and returns no names of metrics."""

    @dataclasses.dataclass(frozen=True)
    class Mean(Evaluation):
        def feature_names(self):
            return ("image",)

        def headline(self):
            return ("mean",)

        def run(self, reader):
            return {"mean": float(reader.features(self.test_split, "image").mean())}

    setup = Setup({"knn": {}})
    setup.evaluator.evaluations = {"mean": Mean()}
    setup.evaluator.programs.feature_names.add("image")
    assert setup.evaluator.check(SHAPES, {}) == {"mean": ()}
    assert setup.evaluator.run(PARAMS, {})["mean"].keys() == {"mean"}
    setup.evaluator.evaluations = {"mean": Mean(test_split="tset", source="data")}
    with pytest.raises(UserError, match=r"evals\.mean\.test_split: split 'tset'"):
        setup.evaluator.check(SHAPES, {})


@pytest.mark.parametrize("name", ["loss", "perplexity"])
def test_labels_beyond_the_classes_of_the_objective(name):
    """Losses and scores refuse them. Probes accept them, since features do not depend on labels."""
    setup = Setup({name: {"ngrams": False} if name == "perplexity" else {"batch_size": 10}}, loss_fn=sums)
    setup.objective.classes = 3
    setup.evaluator.check(SHAPES, {})
    setup.objective.classes = 2
    message = rf"evals\.{name}\.test_split: split 'test' has label 2, but the run learns 2 classes \(labels 0 to 1\)"
    with pytest.raises(UserError, match=message):
        setup.evaluator.check(SHAPES, {})
    probe = Setup({"knn": {}})
    probe.objective.classes = 2
    probe.evaluator.check(SHAPES, {})


@pytest.mark.parametrize(
    "config, keys, message",
    [
        (DIGITS, {"test_split": "tset"}, r"^evals\.perplexity\.test_split: unknown split 'tset' of .*'test'"),
        (DIGITS, {"fit_split": "trian"}, r"^evals\.perplexity\.fit_split: unknown split 'trian'"),
        (DIGITS, {"test_split": "test[x]"}, r"^evals\.perplexity\.test_split: got 'test\[x\]', must be a name"),
        (DIGITS, {"source": "builtin:digts"}, r"^evals\.perplexity\.source: unknown builtin:digts"),
        (DIGITS, {"source": "digits"}, r"^evals\.perplexity\.source: got 'digits', must be"),
        (DIGITS, {"keys": {"image": "img"}}, r"^evals\.perplexity\.keys\.image: unknown column 'img'"),
        (DIGITS, {"where": {"lable": 1}}, r"^evals\.perplexity\.where\.lable: unknown column 'lable'"),
        (DIGITS, {}, r"^evals\.perplexity\.ngrams: got True, but split 'train' has no tokens"),
        (DataConfig(keys={"image": "img"}, source="builtin:digits"), {}, r"^data\.keys\.image: unknown column 'img'"),
        (DataConfig(mixture=[{"source": "builtin:digits"}]), {}, r"^evals\.perplexity\.source: missing; data.mixture"),
    ],
)
def test_errors_of_the_data_name_the_key_of_the_evaluation(config, keys, message):
    evaluator = Evaluator(Objective(), {"perplexity": keys}, config, lambda batch: batch)
    with pytest.raises(UserError, match=message):
        evaluator.check(SHAPES, {})


def test_unknown_name_and_missing_likelihood():
    setup = Setup(PROBES | {"perplexity": {}})
    with pytest.raises(UserError, match=r"unknown evaluation 'liner'; did you mean 'linear'"):
        setup.evaluator.run(PARAMS, {}, ["liner"])

    def score(params, extra, batch):
        raise NotImplementedError("Fake has no likelihoods")

    setup.objective.score = score
    with pytest.raises(UserError, match=r"evals\.perplexity\.type: Fake has no likelihoods"):
        setup.evaluator.run(PARAMS, {}, ["perplexity"])
    with pytest.raises(UserError, match=r"evals\.perplexity\.type: Fake has no likelihoods"):
        setup.evaluator.check(SHAPES, {})


def test_sharded_batches_and_real_digits():
    """The real loader with batches on eight devices. k-NN on the pixels of digits is above 95 %."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def put(batch):
        return {k: jax.device_put(v.astype(np.int32), sharding) for k, v in batch.items()}

    class Pixels(Objective):
        def features(self, params, extra, batch):
            return {"pooled": batch["image"].reshape(len(batch["image"]), -1)}

    evaluator = Evaluator(Pixels(), {"knn": {}}, DataConfig(source="builtin:digits"), put, 128)
    result = evaluator.run({}, {})
    assert result["knn"]["accuracy"] > 0.95
    raw = evaluator.controls({}, {})["raw"]["knn"]
    assert raw == pytest.approx(result["knn"])  # raw input equals features that are pixels


def test_bits_per_byte_of_real_text(tmp_path):
    """A model with probability 1/256 for every byte has eight bits per byte, for any windows."""
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 60 + "Größe.")
    config = DataConfig(source=f"text:{tmp_path}/text.txt", seq_len=16, overlap=1, cache_dir=str(tmp_path / "cache"))

    class Uniform(Objective):
        def prepare(self, batch):
            return batch

        def score(self, params, extra, batch):
            count = jnp.full(len(batch["tokens"]), batch["tokens"].shape[1] - 1, jnp.float32)
            return -count * jnp.log(256.0), count

        def fitted(self, batch):
            return self.scored(batch)

    evals = {"perplexity": {"test_split": "train"}}
    evaluator = Evaluator(Uniform(), evals, config, lambda b: {k: v.astype(np.int32) for k, v in b.items()}, 32)
    assert evaluator.run({}, {})["perplexity"]["bits_per_byte"] == pytest.approx(8.0, rel=1e-5)
    controls = evaluator.controls({}, {})
    assert controls["bigram"]["perplexity"]["bits_per_byte"] < controls["unigram"]["perplexity"]["bits_per_byte"] < 5
