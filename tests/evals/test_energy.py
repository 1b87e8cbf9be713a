"""The evaluation `energy`: its statistics by brute force, its pairs, and every objective."""

import jax
import numpy as np
import pytest
from daily import at_most
from evals.test_definitions import evaluator, setup

from ssljax import objectives
from ssljax.base.errors import UserError
from ssljax.evals.energy import auroc, corrupted, cosine_energies, gap, shuffled

REFUSED = ("graph_cl",)  # graphs without likelihoods


def test_auroc_counts_all_pairs_and_half_of_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        low, high = rng.integers(0, 6, 13) / 2, rng.integers(1, 8, 9) / 2
        count = sum((b > a) + 0.5 * (b == a) for a in low for b in high)
        assert auroc(low, high) == pytest.approx(count / (13 * 9), abs=1e-12)


def test_gap():
    low, high = np.array([1.0, 2.0, 4.0]), np.array([3.0, 7.0])
    variances = (sum((low - 7 / 3) ** 2) / 2 + sum((high - 5) ** 2) / 1) / 2
    assert gap(low, high) == pytest.approx((5 - 7 / 3) / variances**0.5)
    assert gap(np.ones(3), np.ones(2)) == 0 and gap(np.ones(3), np.zeros(2)) == -np.inf


def test_cosine_energies():
    x, y = np.random.default_rng(0).normal(size=(2, 5, 3))
    cosine = lambda a, b: a @ b / np.sqrt(a @ a * (b @ b))  # noqa: E731
    same, other = cosine_energies(x, y)
    np.testing.assert_allclose(same, [-cosine(x[i], y[i]) for i in range(5)])
    np.testing.assert_allclose(other, [-cosine(x[i], y[(i + 1) % 5]) for i in range(5)])


def test_only_scored_tokens_move_and_labels_are_wrong():
    rng = np.random.default_rng(1)
    tokens, moved = rng.integers(0, 50, (40, 12)), rng.random((40, 12)) < 0.6
    out = shuffled(tokens, moved, rng)
    assert (out[~moved] == tokens[~moved]).all() and (out != tokens).any()
    assert all(sorted(a[m]) == sorted(b[m]) for a, b, m in zip(out, tokens, moved))
    label = rng.integers(0, 5, 4000)
    wrong = corrupted({"label": label}, None, 5, 0)["label"]
    steps = np.bincount((wrong - label) % 5, minlength=5)
    assert steps[0] == 0 and abs(steps[1:] / 1000 - 1).max() < 0.15


@pytest.mark.parametrize("name", at_most(objectives.REGISTRY, 12))
def test_every_objective_has_finite_energies_or_is_refused(name):
    objective, (params, extra) = setup(name)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    noisy = lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape)  # noqa: E731 (heads of classes begin at 0)
    params, extra = jax.tree.map(lambda x: noisy(x) if x.dtype == np.float32 else x, (params, extra))
    try:
        found = evaluator(objective, {"energy": {}}).run(params, extra)["energy"]
    except UserError as error:
        assert "evals.energy.type: the model reads graphs, and the objective gives no log-probabilities" in str(error)
        assert name in REFUSED, name
        return
    assert name not in REFUSED
    assert np.isfinite(list(found.values())).all() and found["compatible"] != found["incompatible"], found
