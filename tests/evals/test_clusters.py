"""The evaluation `k_means`: normalised mutual information, and clusters of separate groups."""

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from ssljax.evals.clusters import KMeans, mutual_information

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("parts", [(3, 4), (10, 2), (1, 5)])
def test_mutual_information(parts):
    for _ in range(5):
        a, b = (RNG.integers(0, n, 40) for n in parts)
        expected = normalized_mutual_info_score(a, b, average_method="geometric")
        np.testing.assert_allclose(mutual_information(a, b), expected, atol=1e-9)
    assert mutual_information(a, a) == pytest.approx(float(len(set(a)) > 1))
    assert mutual_information(7 - a, a) == pytest.approx(float(len(set(a)) > 1))


class Groups:
    """Three groups far apart; the scale of a column that says nothing is large."""

    path = "evals.k_means"

    def labels(self, split):
        return np.arange(90 if split == "train" else 60) % 3

    def features(self, split, name):
        labels = self.labels(split)
        rng = np.random.default_rng(len(labels))
        means = np.array([[0, 0], [1, 0], [0, 1]])[labels]
        return np.concatenate([means + rng.normal(0, 0.05, means.shape), 1000 + 0 * means[:, :1]], 1)


def test_separate_groups_are_found():
    assert KMeans().run(Groups()) == {"nmi": pytest.approx(1.0)}
    assert KMeans(clusters=1, restarts=1).run(Groups()) == {"nmi": 0.0}
    assert KMeans().trivial(Groups())["random"]["nmi"] < 0.2
    assert set(KMeans().check(Groups())) == {"nmi"}
