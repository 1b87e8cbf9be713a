"""Words around words: subsampling, windows and noise against their probabilities, in large samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import views
from ssljax.views import example_keys

N, T = 20_000, 8
KEYS = example_keys(jax.random.key(0), N)


def test_probability_of_keeping():
    np.testing.assert_allclose(views.keep_probability(jnp.array([0.04, 1e-3, 0.0]), 0.01), [0.5, 1.0, 1.0])


def test_words_are_dropped_with_their_probability_and_move_together():
    tokens = np.broadcast_to(np.arange(T), (N, T))
    segments = np.broadcast_to([1, 1, 1, 2, 2, 2, 0, 0], (N, T))
    keep = np.linspace(0.2, 1.0, T)
    words = jax.jit(views.subsampled_words, static_argnums=4)(KEYS, tokens, segments, jnp.asarray(keep), 4)
    left = np.asarray(words.segment_ids) > 0
    for token in range(T):
        share = np.mean(np.any(left & (words.tokens == token), 1))
        assert share == pytest.approx(keep[token] if token < 6 else 0, abs=0.015)
    assert np.all(np.diff(left.astype(int), axis=1) <= 0)  # words first
    found, own = np.asarray(words.tokens)[left], np.asarray(words.segment_ids)[left]
    np.testing.assert_array_equal(own, np.where(found < 3, 1, 2))
    ordered = np.where(left, words.tokens, T + np.arange(T))
    assert np.all(np.diff(ordered, axis=1) > 0)  # in their order
    for reach in range(1, 5):
        assert np.mean(np.asarray(words.reach) == reach) == pytest.approx(0.25, abs=0.01)


def test_contexts_are_words_of_the_segment_within_reach():
    tokens, segments = np.array([[5, 6, 7, 8, 9, 0]]), np.array([[1, 1, 1, 2, 2, 0]])
    reach = np.array([[1, 2, 2, 1, 3, 3]])
    words = views.Words(*map(jnp.asarray, (tokens, segments, reach)))
    found = set()
    for offset in views.offsets(3).tolist():
        target, counted = views.context_at(words, offset)
        found |= {(t, int(target[0, t])) for t in np.flatnonzero(counted[0])}
    wanted = {(0, 6), (1, 5), (1, 7), (2, 5), (2, 6), (3, 9), (4, 8)}
    assert found == wanted
    assert views.offsets(2).tolist() == [-2, -1, 1, 2]


@pytest.mark.parametrize("power", [0.75, 1.0, 0.0])
def test_noise_follows_the_counts_to_a_power(power):
    counts = np.array([16.0, 0.0, 1.0, 81.0])
    drawn = np.asarray(views.noise_tokens(KEYS, jnp.asarray(counts), power, (2, 3)))
    assert drawn.shape == (N, 2, 3)
    weights = np.where(counts > 0, counts**power, 0.0)
    p = weights / np.sum(weights)
    found = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    np.testing.assert_allclose(found, p, atol=0.005)
    pairs = np.mean((drawn[:, 0, 0] == 3) & (drawn[:, 1, 2] == 3))
    assert pairs == pytest.approx(p[3] ** 2, abs=0.015)  # independent
