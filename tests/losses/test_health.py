"""Health metrics and Sinkhorn assignments at points whose values are known in closed form."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses
from ssljax.base.errors import UserError
from ssljax.losses import alignment, dino, entropy, swav, uniformity

# Compiled as a whole: eagerly, each small operation would be compiled alone, for every shape.
effective_rank, feature_std = jax.jit(losses.effective_rank), jax.jit(losses.feature_std)
sinkhorn = jax.jit(losses.sinkhorn, static_argnames="iterations")

RNG = np.random.default_rng(0)
SPREAD = jnp.asarray(RNG.normal(size=(200, 16)), jnp.float32)
COLLAPSED = jnp.ones((200, 16))


def test_spread_and_collapsed_features():
    assert feature_std(COLLAPSED) < 1e-6
    np.testing.assert_allclose(feature_std(SPREAD), 16**-0.5, rtol=0.03)
    assert abs(uniformity(COLLAPSED)) < 1e-6
    # E exp(-2 |x - y|^2) = e^-4 E exp(4 cos), and E exp(s cos) = 1 + s^2 / (2 D) + s^4 / (8 D (D + 2)) + ...
    np.testing.assert_allclose(uniformity(SPREAD), -4 + np.log(1 + 16 / 32 + 256 / (8 * 16 * 18)), atol=0.05)
    np.testing.assert_allclose(effective_rank(COLLAPSED), 1, atol=1e-3)
    assert 14 < effective_rank(SPREAD) <= 16
    np.testing.assert_allclose(effective_rank(jnp.diag(jnp.array([3.0, 3.0, 0.0]))), 2, rtol=1e-5)
    assert effective_rank(jnp.zeros((4, 3))) == 0
    assert alignment(SPREAD, 2 * SPREAD) < 1e-10
    np.testing.assert_allclose(alignment(SPREAD, -SPREAD), 4, rtol=1e-6)
    np.testing.assert_allclose(entropy(jnp.full((2, 8), 1 / 8)), np.log(8), rtol=1e-6)
    np.testing.assert_array_equal(entropy(jnp.eye(3)), 0)


def test_a_row_of_weight_two_counts_as_two_rows():
    weights = jnp.asarray(RNG.integers(0, 3, 40), jnp.float32)
    z = SPREAD[:40]
    doubled = jnp.repeat(z, np.asarray(weights, int), axis=0, total_repeat_length=int(weights.sum()))
    np.testing.assert_allclose(effective_rank(z, weights=weights), effective_rank(doubled), rtol=1e-4)
    np.testing.assert_allclose(feature_std(z, weights=weights), feature_std(doubled), rtol=1e-5)
    rows = np.repeat(np.arange(40), np.asarray(weights, int))
    np.testing.assert_allclose(
        sinkhorn(z, epsilon=1.0, weights=weights)[rows], sinkhorn(doubled, epsilon=1.0), rtol=1e-4, atol=1e-6
    )


@hypothesis.given(n=st.sampled_from([4, 7]), k=st.sampled_from([2, 5]), scale=st.floats(0, 1e4))
def test_every_assignment_is_a_distribution(n, k, scale):
    q = sinkhorn(scale * SPREAD[:n, :k])
    assert (q >= 0).all()
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-4)


def test_sinkhorn_uses_all_prototypes_equally():
    biased = SPREAD / 10 + jnp.arange(16)  # every example prefers the last prototype
    q = sinkhorn(biased, epsilon=0.5, iterations=30)
    np.testing.assert_allclose(q.sum(0), 200 / 16, rtol=1e-3)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)


def test_a_single_view_is_refused():
    one = jnp.ones((1, 2, 3))
    for loss in (
        lambda: swav(one),
        lambda: dino(one, one, jnp.zeros(3), 0.1, 0.04),
    ):
        with pytest.raises(UserError, match="no pair of different views"):
            loss()


def test_targets_have_no_gradient():
    rng = np.random.default_rng(1)
    student, teacher = jnp.asarray(rng.normal(size=(3, 2, 4))), jnp.asarray(rng.normal(size=(2, 2, 4)))
    target, centre, mask = jax.nn.softmax(teacher), jnp.zeros(4), jnp.ones((3, 2))
    for loss, arrays in {
        dino: (student, teacher, centre),
        lambda s, t, c: losses.ibot(s, t, mask, c): (student, student + 1, centre),
        lambda s, t: losses.swapped(s[:2], s[2:], t, 0.1): (student, target),
        losses.byol: (student[0], teacher[0]),
        losses.simsiam: (student[0], teacher[0]),
        lambda q, k: losses.moco_v3(q, k, temperature=0.5): (student[0], teacher[0]),
        losses.distillation: (student[0], teacher[0]),
        losses.mean_teacher: (student[0], teacher[0]),
        lambda s, w: losses.fixmatch(w, s, threshold=0.1): (student[0], teacher[0]),
    }.items():
        first, *others = jax.jit(jax.grad(loss, tuple(range(len(arrays)))))(*arrays)
        assert first.any() and not any(other.any() for other in others)


def test_assignments_have_no_gradient():
    """The gradient of `swav` is that of `swapped` at fixed assignments."""
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 5)))
    target = losses.assignments(scores[:2])
    whole = jax.grad(lambda s: swav(s[:2], s[2:]))(scores)
    np.testing.assert_allclose(whole, jax.grad(lambda s: losses.swapped(s[:2], s[2:], target, 0.1))(scores), rtol=1e-5)
