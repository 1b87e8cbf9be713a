"""Every registered evaluation against its definition on ragged data, and the held-out loss of every objective.

The splits fill no whole number of batches, and rows of text have different numbers of tokens.
"""

import functools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_objectives as tiny
from daily import at_most
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score

from ssljax import objectives
from ssljax.base.errors import UserError
from ssljax.data import DataConfig
from ssljax.evals import REGISTRY, Evaluator
from ssljax.evals.base import draw_per_class
from ssljax.evals.held_out import held_out_loss, mean_loss
from ssljax.objectives.base import Ctx, Loss, stream, views_of

SIZES, BATCH, STEPS, SEED = {"train": 37, "test": 21}, 8, 10, 3


@functools.cache
def rows(split):
    """The arrays of a split, with ragged rows of text."""
    parts = [tiny.batch(100 * len(split) + i) for i in range(3)]
    names = [k for k, v in parts[0].items() if not isinstance(v, dict)]  # data of evaluations have no streams
    arrays = {k: np.concatenate([np.asarray(part[k]) for part in parts])[: SIZES[split]] for k in names}
    return {**arrays, "id": np.arange(SIZES[split])}


class Split(dict):
    classes = tuple("abcde")
    byte_lengths = np.where(np.arange(64) < 4, 0, np.arange(64) % 3 + 1)


def load(config, split, **options):
    return Split(rows(split))


@functools.cache
def setup(name):
    """An objective and its variables."""
    objective = tiny.make(name)
    batch = {k: jnp.asarray(v[:4]) for k, v in rows("train").items() if k != "id"}
    return objective, nn.unbox(jax.jit(objective.init)(jax.random.key(0), batch))


def put(batch):
    return {k: jnp.asarray(v) for k, v in batch.items() if k != "id"}


def evaluator(objective, evals):
    tokens = lambda texts: {k: rows("test")[k][: len(texts)] for k in ("tokens", "segment_ids", "positions")}  # noqa: E731
    data = DataConfig(source="builtin:digits")
    loss_fn = held_out_loss(objective, SEED, STEPS)
    return Evaluator(objective, evals, data, put, BATCH, loss_fn=loss_fn, tokenize=tokens, load=load)


def measured(objective_name, evaluation, **keys):
    objective, (params, extra) = setup(objective_name)
    return evaluator(objective, {evaluation: keys}).run(params, extra)[evaluation]


def features(objective_name, split, name):
    """Features of a whole split in one call, float64."""
    objective, (params, extra) = setup(objective_name)
    batch = {k: v for k, v in put(rows(split)).items() if k != "label"}
    found = jax.jit(lambda batch: objective.features(params, extra, objective.prepare(batch)))(batch)
    return np.asarray(found[name], np.float64)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def knn():
    x, y = unit(features("mae", "train", "pooled")), rows("train")["label"]
    right = 0
    for query, label in zip(unit(features("mae", "test", "pooled")), rows("test")["label"]):
        near = np.argsort(-(x @ query))[:5]
        votes = [np.exp(x[near] @ query / 0.07)[y[near] == c].sum() for c in range(5)]
        right += int(np.argmax(votes)) == label
    return measured("mae", "knn", k=5)["accuracy"], right / SIZES["test"]


def standardized():
    x, query = (features("mae", split, "pooled") for split in ("train", "test"))
    return (x - x.mean(0)) / x.std(0), (query - x.mean(0)) / x.std(0)


def linear():
    (x, query), y = standardized(), rows("train")["label"]
    head = LogisticRegression(C=1 / (len(y) * 0.1), tol=1e-9, max_iter=10_000).fit(x, y)
    return measured("mae", "linear", l2=[0.1])["accuracy"], head.score(query, rows("test")["label"])


def few_shot():
    (x, query), y = standardized(), rows("train")["label"]
    chosen = draw_per_class(y, 3, np.random.default_rng((0, 3, 0)), "")
    mean, target = x[chosen].mean(0), 2.0 * (y[chosen][:, None] == np.arange(5)) - 1
    z = x[chosen] - mean
    penalty = 0.1 * np.mean(np.sum(z**2, 1)) * np.eye(z.shape[1])
    weight = np.linalg.solve(z.T @ z + penalty, z.T @ (target - target.mean(0)))
    found = np.argmax((query - mean) @ weight + target.mean(0), 1)
    result = measured("mae", "few_shot", shots=[3], draws=1, l2=0.1)
    return result["accuracy_3_shot"], np.mean(found == rows("test")["label"])


def k_means():
    (x, query), y = standardized(), rows("test")["label"]
    clusters = KMeans(2, n_init=50, random_state=0).fit(x).predict(query)
    expected = normalized_mutual_info_score(y, clusters, average_method="geometric")
    return measured("mae", "k_means", clusters=2, restarts=60)["nmi"], expected


def zero_shot():
    image, text = unit(features("clip", "test", "image")), unit(features("clip", "test", "text"))[:5]
    found = np.argmax(image @ text.T, 1)  # the prompts of the five classes have the tokens of rows 0 to 4
    return measured("clip", "zero_shot")["accuracy"], np.mean(found == rows("test")["label"])


def retrieval():
    similarity = unit(features("clip", "test", "image")) @ unit(features("clip", "test", "text")).T
    rank = [(row >= row[i] - 1e-6).sum() for i, row in enumerate(similarity)]
    return measured("clip", "retrieval", ks=[5])["image_to_text_r5"], np.mean(np.array(rank) <= 5)


def log_probs(name, batch):
    """Log-probabilities [B, T, V] of a model of tokens, from all logits."""
    objective, (params, _) = setup(name)
    hidden = objective.hidden(params, batch, None).tokens
    logits = objective.model.apply({"params": params["encoder"]}, hidden, method="logits")
    return np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)), np.float64)


def perplexity():
    batch = rows("test")
    log_p, nats, count, size = log_probs("causal_lm", put(batch)), 0.0, 0, 0
    for b in range(SIZES["test"]):
        for t in range(1, tiny.LENGTH):
            if batch["segment_ids"][b, t] == batch["segment_ids"][b, t - 1] > 0:
                token = batch["tokens"][b, t]
                nats -= log_p[b, t - 1, token]
                count += 1
                size += Split.byte_lengths[token]
    result = measured("causal_lm", "perplexity", ngrams=False)
    assert result["scored_tokens"] == count
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    return result["perplexity"], math.exp(nats / count)


def pseudo_perplexity():
    batch, (objective, _) = rows("test"), setup("mlm")
    special, nats, count, size = set(tiny.SPEC.special_ids.values()), 0.0, 0, 0
    for t in range(tiny.LENGTH):
        masked = np.where(np.arange(tiny.LENGTH) == t, objective.mask_id, batch["tokens"])
        log_p = log_probs("mlm", put({**batch, "tokens": masked}))
        for b, token in enumerate(batch["tokens"][:, t]):
            if batch["segment_ids"][b, t] > 0 and token not in special:
                nats -= log_p[b, t, token]
                count += 1
                size += Split.byte_lengths[token]
    result = measured("mlm", "pseudo_perplexity", ngrams=False)
    assert result["pseudo_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    return result["pseudo_perplexity"], math.exp(nats / count)


def reconstruction():
    fit, test = (rows(split)["image"].reshape(SIZES[split], -1) / 255 for split in ("train", "test"))
    made = features("autoencoder", "test", "reconstruction")
    result = measured("autoencoder", "reconstruction")
    directions = np.linalg.svd(fit - fit.mean(0))[2][:6]  # a code has six numbers
    restored = fit.mean(0) + (test - fit.mean(0)) @ directions.T @ directions
    objective, (params, extra) = setup("autoencoder")
    everything = evaluator(objective, {"reconstruction": {}}).controls(params, extra)
    assert everything["pca"]["reconstruction"]["mse"] == pytest.approx(np.mean((restored - test) ** 2), rel=1e-5)
    assert everything["mean"]["reconstruction"]["mse"] == pytest.approx(np.mean((fit.mean(0) - test) ** 2), rel=1e-5)
    return result["mse"], np.mean((made - test) ** 2)


def energy():
    """Energies of two random views; every pair of a compatible and an incompatible one is counted."""
    objective, (params, extra) = setup("simclr")
    batch = objective.prepare({k: v for k, v in put(rows("test")).items() if k != "label"})
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(7), row))(jnp.arange(SIZES["test"]))
    both = []
    for number in (0, 1):
        view = objective.augment(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys), batch["image"])  # noqa: B023
        both.append(
            unit(np.asarray(objective.features(params, extra, {"image": view[:, number]})["pooled"], np.float64))
        )
    cosine = both[0] @ both[1].T
    same, other = -np.diag(cosine), -np.array([cosine[i, (i + 1) % len(cosine)] for i in range(len(cosine))])
    result = measured("simclr", "energy", seed=7)
    assert result["compatible"] == pytest.approx(same.mean(), rel=1e-5)
    assert result["incompatible"] == pytest.approx(other.mean(), rel=1e-5)
    return result["auroc"], np.mean([(b > a) + (a == b) / 2 for a in same for b in other])


def loss():
    batch = rows("test")
    objective, (params, extra) = setup("classification")  # mixup in training
    logits = objective.features(params, extra, objective.prepare(put(batch)))["logits"]
    log_p, s = np.asarray(jax.nn.log_softmax(logits), np.float64), objective.label_smoothing
    target = (1 - s) * np.eye(5)[batch["label"]] + s / 5
    result = measured("classification", "loss", batch_size=BATCH)
    assert result["accuracy"] == np.mean(np.argmax(log_p, 1) == batch["label"])
    return result["loss"], -np.mean(np.sum(target * log_p, 1))


DEFINITIONS = {
    f.__name__: f
    for f in (
        knn,
        linear,
        few_shot,
        k_means,
        zero_shot,
        retrieval,
        perplexity,
        pseudo_perplexity,
        reconstruction,
        energy,
        loss,
    )
}


@pytest.mark.parametrize("name", REGISTRY)
def test_every_evaluation_is_its_definition_on_ragged_data(name):
    assert name in DEFINITIONS, f"evaluation {name!r} has no definition in {__file__}"
    value, expected = DEFINITIONS[name]()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", at_most(objectives.REGISTRY, 4))
def test_the_loss_of_every_objective_is_summed_over_the_whole_split(name):
    """Sums and weights of the rows alone, in float64; a coupled objective sees whole batches of drawn rows."""
    objective, (params, extra) = setup(name)
    objective, batch, size = objective.held_out(), rows("test"), SIZES["test"]
    if objective.coupled:
        size = size // BATCH * BATCH
        drawn = np.random.default_rng(0).permutation(SIZES["test"])[:size]
        batch = {k: v[drawn] for k, v in batch.items()}
    sums: dict = {}

    @functools.partial(jax.jit, static_argnames="count")
    def terms_of(batch, number, count):
        inputs = views_of(objective, stream(jnp.uint32(SEED), number, "eval_views"), batch, number)
        inputs = jax.tree.map(lambda x: x[:count], inputs)
        ctx = Ctx(stream(jnp.uint32(SEED), number, "eval_encode"), jnp.int32(STEPS), jnp.arange(count), train=False)
        return objective.loss(params, extra, objective.encode(params, extra, inputs, ctx), inputs, ctx).terms

    for number, start in enumerate(range(0, size, BATCH)):
        places = np.minimum(np.arange(start, start + BATCH), size - 1)
        found = terms_of(put({k: v[places] for k, v in batch.items()}), jnp.int32(number), min(BATCH, size - start))
        for term, (c, s, w) in found.items():
            sums[term] = sums.get(term, 0) + np.array([c * s, w], np.float64)
    expected = sum(s / w for s, w in sums.values())
    assert measured(name, "loss", batch_size=BATCH)["loss"] == pytest.approx(expected, rel=2e-5)


def test_a_loss_is_no_mean_of_batch_means():
    """Two tokens of 8 nats and 200 tokens of 1 nat."""
    batches = [Loss({"nll": (1.0, 16.0, 2.0)}), Loss({"nll": (1.0, 200.0, 200.0)})]
    assert mean_loss(batches) == {"loss": pytest.approx(216 / 202)}


def test_terms_have_separate_weights_and_are_reported():
    batches = [Loss({"a": (1.0, 4.0, 2.0), "b": (0.5, 3.0, 1.0)}), Loss({"a": (1.0, 2.0, 4.0), "b": (0.5, 0.0, 0.0)})]
    assert mean_loss(batches) == {"loss": 1.0 + 1.5, "loss/a": 1.0, "loss/b": 3.0}
    assert math.isnan(mean_loss([Loss({"a": (1.0, 0.0, 0.0)})])["loss"])


def test_bits_per_byte_counts_the_bytes_that_are_predicted(tmp_path):
    """Texts of 10 bytes cost 80 bits, and the predicted end of a text costs none: 8 bits per byte.

    The first token of a text is never predicted.
    """
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": "0123456789"}) + "\n" for _ in range(21)))
    data = DataConfig(source=f"jsonl:{tmp_path}/x.jsonl", mode="documents", seq_len=16)
    scorer = type(setup("causal_lm")[0])

    class Uniform(scorer):
        def score(self, params, extra, batch):
            counted = self.scored(batch)
            text = counted & (batch["tokens"] < 256)
            return -8 * math.log(2) * jnp.sum(text, 1), jnp.sum(counted, 1)

    objective = object.__new__(Uniform)
    object.__setattr__(objective, "spec", tiny.SPEC)
    keys = {"test_split": "train[10:]", "fit_split": "train[:10]"}
    result = Evaluator(objective, {"perplexity": keys}, data, put, BATCH)
    found = result.run({}, {})["perplexity"]
    assert found["scored_tokens"] == 11 * 11 and found["bits_per_byte"] == pytest.approx(8)
    controls = result.controls({}, {})
    assert controls["unigram"]["perplexity"]["bits_per_token"] == pytest.approx(math.log2(11), abs=0.01)


def in_slices(fit, select, test):
    return {"fit_split": fit, "select_split": select, "test_split": test}


@pytest.mark.parametrize(
    "splits, message",
    [
        (in_slices("train", None, "train[:10]"), r"test_split: 'train\[:10\]' shares 10 rows with fit_split 'train'"),
        (in_slices("train[:60%]", None, "train[50%:]"), r"test_split: 'train\[50%:\]' shares \d+ rows with fit_split"),
        (in_slices("all", None, "test"), r"test_split: 'test' shares \d+ rows with fit_split 'all'"),
        (in_slices("train", "train[-9:]", "test"), r"select_split: 'train\[-9:\]' shares 9 rows with fit_split"),
        (in_slices("train[:9]", "test[:9]", "test"), r"test_split: 'test' shares 9 rows with select_split"),
        (in_slices("train[:50%]", "train[50%:]", "test"), None),
        (in_slices("train[:50%]", None, "train[50%:]"), None),
    ],
)
@pytest.mark.parametrize("name", REGISTRY)
def test_every_evaluation_that_fits_refuses_overlapping_splits(name, splits, message, tmp_path):
    objective, _ = setup("mae")
    keys = {k: v for k, v in splits.items() if v is not None}
    found = evaluator(objective, {name: keys})
    separate = found.evaluations[name].separate_splits()
    expected = (
        message is not None
        and message.partition(":")[0] in separate
        and (splits["select_split"] is None or "select_split" in separate)
    )
    if expected:
        with pytest.raises(UserError, match=rf"^evals\.{name}\.{message}"):
            found._check_splits(name)
    else:
        found._check_splits(name)


def test_slices_of_text_are_compared_by_documents(tmp_path):
    """Windows have no rows of the source, so their numbers say nothing about an overlap."""
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": "word " * 20}) + "\n" for _ in range(20)))
    data = DataConfig(source=f"jsonl:{tmp_path}/x.jsonl", seq_len=12)
    objective, (params, extra) = setup("causal_lm")
    message = r"perplexity\.test_split: 'train\[15:\]' shares 2 rows with fit_split 'train\[:17\]'"
    for fit in ("train[:17]", "train[:15]"):
        found = Evaluator(objective, {"perplexity": in_slices(fit, None, "train[15:]")}, data, put, BATCH)
        if fit == "train[:17]":
            with pytest.raises(UserError, match=message):
                found.check(params, extra)
        else:
            found.check(params, extra)
    record = found.records(1, found.run(params, extra))[0]
    assert record["warning"] == "5 rows of test_split 'train[15:]' are rows of the training split"
