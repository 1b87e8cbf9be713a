"""Losses in which one view of an example predicts a distribution that is computed from another view."""

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.losses.reduction import EXACT, NEG_INF, weighted_mean, weights_of


def dino_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    center: jax.Array,
    *,
    student_temperature: float,
    teacher_temperature: float | jax.Array,
    skip_same: bool = True,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """DINO (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", eq. 1 to 3), in nats.

    Mean over the pairs of a teacher view t and a student view s != t of the cross-entropy between
    softmax((teacher_t - center) / teacher_temperature) and softmax(student_s / student_temperature). No gradient
    reaches the teacher's logits or the centre.

    Args:
        student_logits: [N, S, K], all crops.
        teacher_logits: [N, T, K], the global crops; the student's first T views are the same crops.
        center: [K], running mean of the teacher's logits.
        skip_same: leaves out the pairs in which teacher and student see the same crop.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).

    Raises:
        UserError: no pair is left (S = T = 1 with `skip_same`).
    """
    centred = teacher_logits.astype(jnp.float32) - center.astype(jnp.float32)
    target_NxTxK = jax.lax.stop_gradient(jnp.exp(_log_softmax(centred, teacher_temperature)))
    log_q_NxSxK = _log_softmax(student_logits, student_temperature)
    values = _across_views(target_NxTxK, log_q_NxSxK, skip_same)
    return weighted_mean(values, weights_of(weights, values.shape[0]), reduce)


def swav_loss(
    scores: jax.Array,
    assignments: jax.Array,
    *,
    temperature: float = 0.1,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Swapped prediction of SwAV (Caron et al. 2020, "Unsupervised Learning ... by Contrasting Cluster Assignments",
    eq. 2 and, for multi-crop, eq. 6), in nats.

    Mean over the pairs of an assigned view a and another view v of the cross-entropy between the assignment of a and
    softmax(scores_v / temperature). No gradient reaches the assignments.

    Args:
        scores: [N, V, K], dot products of embeddings and prototypes, both normalised.
        assignments: [N, A, K], the result of `sinkhorn` for the first A views.
        temperature: temperature of the softmax.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).

    Raises:
        UserError: no pair is left (V = A = 1).
    """
    target_NxAxK = jax.lax.stop_gradient(assignments.astype(jnp.float32))
    log_q_NxVxK = _log_softmax(scores, temperature)
    values = _across_views(target_NxAxK, log_q_NxVxK, skip_same=True)
    return weighted_mean(values, weights_of(weights, values.shape[0]), reduce)


def sinkhorn(
    scores: jax.Array, *, epsilon: float = 0.05, iterations: int = 3, weights: jax.Array | None = None
) -> jax.Array:
    """Soft assignments of N examples to K prototypes, with equal total mass per prototype (Sinkhorn-Knopp).

    Q = diag(u) exp(scores / epsilon) diag(v) (Caron et al. 2020, eq. 3 to 5; Cuturi 2013): each iteration gives all
    prototypes equal mass, then every example mass 1. Computed in log space, so no score overflows.

    Args:
        scores: [N, K].
        epsilon: entropic smoothing; a small value is close to hard assignment.
        iterations: number of Sinkhorn-Knopp iterations, at least 1.
        weights: [N], contribution of each example to the mass of prototypes; 0 = padding, assigned without
            contributing.

    Returns:
        float32 [N, K]; rows sum to 1. Differentiable; `swav_loss` stops the gradient.
    """
    weights = weights_of(weights, scores.shape[0])
    log_w = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1.0)), NEG_INF)[:, None]

    def iterate(log_q, _):
        log_q = log_q - jax.nn.logsumexp(log_q + log_w, axis=0, keepdims=True)
        return jax.nn.log_softmax(log_q, axis=1), None

    log_q, _ = jax.lax.scan(iterate, scores.astype(jnp.float32) / epsilon, length=iterations)
    return jnp.exp(log_q)


def _log_softmax(logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """log softmax(logits / temperature) over the last axis, float32.

    The maximum is subtracted before the division. After it, a fused multiply and add would see logits that are not
    rounded like their maximum, and exp of the difference overflows for large logits.
    """
    logits = logits.astype(jnp.float32)
    shifted = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return jax.nn.log_softmax(shifted / temperature)


def _across_views(target_NxTxK: jax.Array, log_q_NxSxK: jax.Array, skip_same: bool) -> jax.Array:
    """Mean cross-entropy [N] over the pairs (t, s); `skip_same` leaves out t = s."""
    t, s = target_NxTxK.shape[1], log_q_NxSxK.shape[1]
    counted_TxS = ~jnp.eye(t, s, dtype=bool) if skip_same else jnp.ones((t, s), bool)
    pairs = t * s - (min(t, s) if skip_same else 0)
    if pairs == 0:
        raise UserError(
            f"no pair of different views: got {t} target and {s} predicting views, one number must be at least 2"
        )
    cross_entropy_NxTxS = -jnp.einsum("ntk,nsk->nts", target_NxTxK, log_q_NxSxK, precision=EXACT)
    return jnp.where(counted_TxS, cross_entropy_NxTxS, 0.0).sum((1, 2)) / pairs
