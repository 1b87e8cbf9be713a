"""Health numbers and assignments at points with known answers."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import losses
from ssljax.base.errors import UserError
from ssljax.losses import alignment, dino_loss, entropy, swav_loss, uniformity

# One compiled program; without jit every small operation is compiled separately for every shape.
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


def test_a_weight_of_two_equals_the_row_twice():
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
def test_assignments_are_distributions(n, k, scale):
    q = sinkhorn(scale * SPREAD[:n, :k])
    assert (q >= 0).all()
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-4)


def test_sinkhorn_uses_all_prototypes_equally():
    biased = SPREAD / 10 + jnp.arange(16)  # every example prefers the last prototype
    q = sinkhorn(biased, epsilon=0.5, iterations=30)
    np.testing.assert_allclose(q.sum(0), 200 / 16, rtol=1e-3)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)


def test_views_without_a_partner_are_refused():
    one = jnp.ones((2, 1, 3))
    for loss in (
        lambda: swav_loss(one, one),
        lambda: dino_loss(one, one, jnp.zeros(3), student_temperature=0.1, teacher_temperature=0.04),
    ):
        with pytest.raises(UserError, match="no pair of different views"):
            loss()


def test_targets_get_no_gradient():
    rng = np.random.default_rng(1)
    student, teacher = jnp.asarray(rng.normal(size=(2, 3, 4))), jnp.asarray(rng.normal(size=(2, 2, 4)))

    def dino(student, teacher, center):
        return dino_loss(student, teacher, center, student_temperature=0.1, teacher_temperature=0.04)

    d_student, d_teacher, d_center = jax.jit(jax.grad(dino, (0, 1, 2)))(student, teacher, jnp.zeros(4))
    assert d_student.any() and not d_teacher.any() and not d_center.any()
    d_scores, d_assignments = jax.jit(jax.grad(swav_loss, (0, 1)))(student, jax.nn.softmax(teacher))
    assert d_scores.any() and not d_assignments.any()
