"""k-means by its definition: assignment, update, and the probabilities of k-means++."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans

from ssljax.base import k_means as clustering

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)


def test_assignment_and_update():
    x, centroids = RNG.normal(size=(50, 3)), RNG.normal(size=(7, 3))
    centroids[4] = 100.0  # empty
    expected = np.array([np.argmin([((p - c) ** 2).sum() for c in centroids]) for p in x])
    found = jax.jit(clustering.assign)(jnp.asarray(x, jnp.float32), jnp.asarray(centroids, jnp.float32))
    np.testing.assert_array_equal(found, expected)
    means = np.array([x[expected == k].mean(0) if (expected == k).any() else centroids[k] for k in range(7)])
    given = [jnp.asarray(a) for a in (x, expected, centroids)]
    np.testing.assert_allclose(jax.jit(clustering.move)(*given), means, rtol=1e-5)
    moved = np.asarray(jax.jit(clustering.move)(*given, KEY))
    full = np.array([(expected == k).any() for k in range(7)])
    np.testing.assert_allclose(moved[full], means[full], rtol=1e-5)
    near = np.abs(moved[4] - means[full]).max(1)
    assert not full[4] and 0 < near.min() < 0.06  # the mean of another cluster, and a little noise


def test_first_centroids_have_their_probabilities():
    """By enumeration of all ordered choices of three points."""
    x = np.array([[0.0, 0], [1, 0], [0, 3], [5, 1]])
    square = ((x[:, None] - x) ** 2).sum(-1)
    expected = {}
    for a in range(4):
        for b in range(4):
            for c in range(4):
                near = np.minimum(square[a], square[b])
                p = 0.25 * square[a, b] / square[a].sum() * near[c] / near.sum()
                expected[a, b, c] = expected.get((a, b, c), 0) + p
    draws = jax.jit(jax.vmap(lambda key: clustering.plus_plus(key, jnp.asarray(x), 3)))(jax.random.split(KEY, 20_000))
    index = np.argmin(((np.asarray(draws)[:, :, None] - x) ** 2).sum(-1), -1)
    for choice, p in expected.items():
        share = (index == choice).all(1).mean()
        assert abs(share - p) < 5 * np.sqrt(p / 20_000) + 1e-9, choice


def test_equal_points():
    found = clustering.plus_plus(KEY, jnp.ones((4, 2)), 3)
    np.testing.assert_array_equal(found, np.ones((3, 2)))


def test_clusters_are_as_good_as_those_of_scikit_learn():
    x = np.concatenate([RNG.normal(c, 0.3, (60, 2)) for c in ((0, 0), (4, 0), (0, 4), (5, 5))]).astype(np.float32)
    errors = []
    for seed in range(5):
        centroids, clusters = clustering.k_means(jax.random.key(seed), jnp.asarray(x), 4, 20)
        np.testing.assert_array_equal(clusters, clustering.assign(x, centroids))
        np.testing.assert_allclose(clustering.move(x, clusters, centroids), centroids, atol=1e-4)  # it has converged
        errors.append(float(clustering.squared_distances(x, centroids).min(1).sum()))
    np.testing.assert_allclose(min(errors), KMeans(4, n_init=10, random_state=0).fit(x).inertia_, rtol=1e-4)
