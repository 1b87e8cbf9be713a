"""k-NN, linear probe and few-shot ridge regression against brute force and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, Ridge

from ssljax.base.errors import UserError
from ssljax.evals.base import draw_per_class, majority, standardizer
from ssljax.evals.few_shot import FewShot, ridge
from ssljax.evals.knn import Knn, knn_predict
from ssljax.evals.linear import Linear, folds_of, logistic_path, logistic_sgd, predict

CLASSES, WIDTH = 4, 6


def blobs(n, seed, noise=0.6):
    """Returns features around one centre per class, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(CLASSES, WIDTH))
    y = rng.integers(CLASSES, size=n)
    return (centres[y] + noise * rng.normal(size=(n, WIDTH))).astype(np.float32), y


class Reader:
    """A reader of features and labels, two arrays for each split."""

    path = "evals.probe"

    def __init__(self, **splits):
        self.splits = splits

    def features(self, split, name):
        return self.splits[split][0]

    def labels(self, split):
        return self.splits[split][1]


@pytest.fixture(scope="module")
def reader():
    return Reader(train=blobs(200, 0), test=blobs(120, 1), valid=blobs(60, 2))


def knn_by_definition(bank, labels, query, k, temperature):
    """Wu et al. 2018, section 3.4, one query at a time in float64."""
    bank, query = bank.astype(np.float64), query.astype(np.float64)
    out = []
    for q in query:
        similarity = [b @ q / np.linalg.norm(b) / np.linalg.norm(q) for b in bank]
        votes = np.zeros(labels.max() + 1)
        for i in np.argsort(similarity)[::-1][:k]:
            votes[labels[i]] += np.exp(similarity[i] / temperature)
        out.append(votes.argmax())
    return np.array(out)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (20, 1.0), (500, 0.5)])
def test_knn_is_the_weighted_vote(k, temperature):
    (x, y), (q, _) = blobs(150, 0, noise=1.5), blobs(70, 1, noise=1.5)
    expected = knn_by_definition(x, y, q, k, temperature)
    assert len(set(expected)) > 1
    for block in (32, 256):  # several blocks, one of them padded
        np.testing.assert_array_equal(knn_predict(x, y, q, k=k, temperature=temperature, block=block), expected)


def test_knn_with_a_small_temperature_does_not_overflow():
    (x, y), (q, _) = blobs(50, 0), blobs(20, 1)
    np.testing.assert_array_equal(knn_predict(x, y, q, k=5, temperature=1e-4), knn_predict(x, y, q, k=1))


def test_knn_with_few_labels_is_the_mean_over_draws(reader):
    (x, y), (q, answers) = reader.splits["train"], reader.splits["test"]
    accuracies = []
    for draw in range(3):
        rows = draw_per_class(y, 2, np.random.default_rng((0, draw)), "x")
        accuracies.append(np.mean(knn_by_definition(x[rows], y[rows], q, 20, 0.07) == answers))
    result = Knn(labels_per_class=2, draws=3).run(reader)
    assert len(set(accuracies)) > 1  # the draws differ
    assert result["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))


@pytest.mark.parametrize("probe", [Knn(k=5), Linear(l2=(1e-2, 1e-4)), FewShot(shots=(5,))])
def test_permuted_labels_destroy_accuracy(probe, reader):
    """Every probe is at chance level when the fitting labels are permuted."""
    name = probe.headline()[0]
    assert probe.run(reader)[name] > 0.8
    x, y = reader.splits["train"]
    permuted = Reader(**{**reader.splits, "train": (x, np.random.default_rng(0).permutation(y))})
    assert probe.run(permuted)[name] < 0.45
    assert probe.trivial(reader)["majority"][name] == majority(y, reader.labels("test"))


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_logistic_regression_equals_scikit_learn(l2):
    x, y = blobs(120, 0, noise=1.2)
    # In scikit-learn, C multiplies the sum of cross-entropies: C = 1 / (l2 N).
    reference = LogisticRegression(C=1 / (l2 * len(y)), max_iter=5000, tol=1e-8).fit(x, y)
    head = np.asarray(logistic_path(x, y, np.ones(len(y)), l2=jnp.array([10.0, l2]), classes=CLASSES))[1]
    weight = head[:-1] - head[:-1].mean(axis=1, keepdims=True)  # the penalty already centres the weights
    np.testing.assert_allclose(weight, head[:-1], atol=2e-3)
    np.testing.assert_allclose(weight, reference.coef_.T, atol=3e-3, rtol=3e-3)


@pytest.mark.parametrize("columns", [100, pytest.param(500, marks=pytest.mark.full)])
def test_logistic_regression_converges_on_correlated_features(columns):
    """Neighbouring columns are nearly equal, like pixels; with more and with fewer rows than columns."""
    n, l2, rng = 300, 1e-6, np.random.default_rng(0)
    y = rng.integers(CLASSES, size=n)
    x = np.cumsum(rng.normal(size=(n, columns)), axis=1) + rng.normal(size=(CLASSES, 1))[y]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    head = np.asarray(logistic_path(x, y, np.ones(n), l2=jnp.array([1e-1, l2]), classes=CLASSES), np.float64)[1]
    reference = LogisticRegression(C=1 / (l2 * n), max_iter=50_000, tol=1e-7).fit(x, y)

    def loss(weight, bias):
        return -log_softmax(x @ weight + bias, axis=1)[np.arange(n), y].mean() + l2 / 2 * np.sum(weight**2)

    assert loss(head[:-1], head[-1]) < loss(reference.coef_.T, reference.intercept_) + 2e-5


def test_logistic_gradient_vanishes_and_rows_of_weight_zero_have_no_effect():
    x, y = blobs(120, 0, noise=1.2)
    keep = np.arange(120) % 3 > 0
    heads = logistic_path(x, y, keep.astype(np.float32), l2=jnp.array([0.1, 0.01]), classes=CLASSES)
    alone = logistic_path(x[keep], y[keep], np.ones(keep.sum()), l2=jnp.array([0.1, 0.01]), classes=CLASSES)
    np.testing.assert_allclose(heads, alone, atol=2e-4)

    def loss(head, l2):  # the formula of the docstring
        p = jax.nn.log_softmax(x[keep] @ head[:-1] + head[-1])
        return -p[np.arange(keep.sum()), y[keep]].mean() + l2 / 2 * (head[:-1] ** 2).sum()

    for head, l2 in zip(heads, (0.1, 0.01)):
        assert float(jnp.abs(jax.grad(loss)(head, l2)).max()) < 3e-5


def test_separable_classes_with_a_small_l2_stay_finite():
    x, y = blobs(40, 0, noise=0.01)
    heads = np.asarray(logistic_path(x, y, np.ones(40), l2=jnp.array([1e-4, 1e-8]), classes=CLASSES))
    assert np.isfinite(heads).all() and (predict(heads[1], x) == y).all()


def test_sgd_reaches_the_same_accuracy(reader):
    lbfgs, sgd = Linear(l2=(1e-2, 1e-4)), Linear(solver="sgd", epochs=30, sgd_batch=32)
    a, b = lbfgs.run(reader), sgd.run(reader)
    assert abs(a["accuracy"] - b["accuracy"]) < 0.05 and b["learning_rate"] in sgd.learning_rates
    x, y = reader.splits["train"]
    settings = {"key": jax.random.key(0), "classes": CLASSES, "epochs": 30, "batch": 32}
    both = logistic_sgd(x, y, np.ones(200), learning_rates=jnp.array([0.01, 0.1]), **settings)
    one = logistic_sgd(x, y, np.ones(200), learning_rates=jnp.array([0.1]), **settings)
    np.testing.assert_allclose(both[1], one[0], atol=1e-5)  # the learning rates are independent


def test_linear_selects_on_the_selection_split_not_on_test(reader):
    """Another selection split leads to another l2."""
    probe = Linear(l2=(1e3, 1e-3), select_split="valid")
    assert probe.run(reader)["l2"] == pytest.approx(1e-3)  # 1e3 predicts the majority
    fit_y = reader.labels("train")
    # Constant selection labels favour the head that always predicts the majority class.
    top = np.bincount(fit_y).argmax()
    constant = Reader(**{**reader.splits, "valid": (reader.splits["valid"][0], np.full(60, top))})
    assert probe.run(constant)["l2"] == pytest.approx(1e3)


def test_labels_per_class_hides_all_other_labels(reader):
    probe = Linear(l2=(1.0, 1e-2), labels_per_class=5, draws=3)
    result = probe.run(reader)
    assert result["accuracy"] > 0.7 and result["accuracy_std"] >= 0
    x, y = reader.splits["train"]
    used = np.zeros(len(y), bool)
    for draw in range(3):
        used[draw_per_class(y, 5, np.random.default_rng((0, draw)), "x")] = True
    # Other labels would change the draws, so the features of the unused rows are shuffled instead.
    shuffled = x.copy()
    rest = np.flatnonzero(~used)
    shuffled[rest] = x[np.random.default_rng(0).permutation(rest)]
    again = probe.run(Reader(**{**reader.splits, "train": (shuffled, y)}))
    assert again["accuracy"] == pytest.approx(result["accuracy"], abs=0.01)


def test_more_shots_than_examples_are_refused(reader):
    with pytest.raises(UserError, match=r"evals\.probe\.shots: got 1000, must be at most the \d+ examples of class 0"):
        FewShot(shots=(1000,)).run(reader)


def test_folds_are_a_stratified_partition():
    y = np.repeat([0, 1, 2], [10, 20, 35])
    folds = folds_of(y, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(folds.sum(axis=0), 1)
    for label, size in ((0, 2), (1, 4), (2, 7)):
        np.testing.assert_array_equal((folds & (y == label)).sum(axis=1), size)


@pytest.mark.parametrize("n", [4, 30])  # fewer and more examples than features
def test_ridge_equals_scikit_learn_and_explicit_leave_one_out(n):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, WIDTH)), rng.normal(size=(n, 3))
    scale = np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1))
    candidates = (1e-3, 0.1, 1.0, 30.0)
    errors = []
    for l2 in candidates:
        reference = Ridge(alpha=l2 * scale).fit(x, y)
        weight, bias = ridge(x, y, (l2,))
        np.testing.assert_allclose(weight, reference.coef_.T, atol=1e-9)
        np.testing.assert_allclose(bias, reference.intercept_, atol=1e-9)
        rows = np.arange(n)
        left_out = [Ridge(alpha=l2 * scale).fit(x[rows != i], y[rows != i]).predict(x[i : i + 1]) for i in rows]
        errors.append(np.sum((np.concatenate(left_out) - y) ** 2))
    weight, _ = ridge(x, y, candidates)
    np.testing.assert_allclose(weight, ridge(x, y, (candidates[int(np.argmin(errors))],))[0], atol=1e-12)


def test_few_shot_accuracy_increases_with_shots(reader):
    result = FewShot(shots=(1, 5, 10), draws=4).run(reader)
    assert result["accuracy_1_shot"] < result["accuracy_5_shot"] <= result["accuracy_10_shot"] + 0.02
    assert {f"accuracy_{n}_shot_std" for n in (1, 5, 10)} <= set(result)


def test_majority_and_standardizer():
    assert majority(np.array([0, 1, 1]), np.array([1, 1, 0, 2])) == 0.5
    x = np.array([[1.0, 1000.0, 0.0], [3.0, 1000.0, 0.0]])
    mean, scale = standardizer(x)
    np.testing.assert_allclose((x - mean) / scale, [[-1, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    "probe, message",
    [
        (Knn(fit_split="test"), "test_split: got 'test', must differ"),
        (Linear(select_split="test"), "select_split: got 'test', must differ"),
        (Linear(draws=3), "draws: got 3"),
        (Knn(draws=3), "draws: got 3"),
        (Linear(labels_per_class=1), "l2: got 7 values"),
        (Linear(l2=()), "l2: got an empty list"),
    ],
)
def test_impossible_settings(probe, message):
    with pytest.raises(ValueError, match=message):
        probe.validate()


@pytest.mark.parametrize(
    ("labels", "draws", "text"), [(1, 1, ", 1 label a class, 1 draw"), (10, 3, ", 10 labels a class, 3 draws")]
)
def test_numbers_agree_with_their_nouns(labels, draws, text):
    assert Knn(labels_per_class=labels, draws=draws).label_summary() == text
