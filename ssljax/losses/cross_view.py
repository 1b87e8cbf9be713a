"""Losses in which one view of an example predicts a distribution that is computed from another view."""

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.losses.reduction import EXACT, NEG_INF, l2_normalize, present, weighted_mean, weights_of


def byol(p: jax.Array, z: jax.Array, *, weights: jax.Array | None = None, reduce: bool = True):
    """BYOL in one direction (Grill et al. 2020, "Bootstrap Your Own Latent", eq. 2): 2 - 2 cos(p, z).

    Args:
        p: [N, D], predictions of the online network.
        z: [N, D], projections of the target network; no gradient reaches them.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, p.shape[0])
    return weighted_mean(2 - 2 * _cosine(*present(weights, p, z)), weights, reduce)


def simsiam(p: jax.Array, z: jax.Array, *, weights: jax.Array | None = None, reduce: bool = True):
    """SimSiam in one direction (Chen & He 2021, "Exploring Simple Siamese Representation Learning", eq. 1): -cos(p, z).

    Args:
        p: [N, D], predictions.
        z: [N, D], projections of the other view; no gradient reaches them.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, p.shape[0])
    return weighted_mean(-_cosine(*present(weights, p, z)), weights, reduce)


def _cosine(p: jax.Array, z: jax.Array) -> jax.Array:
    return (l2_normalize(p) * l2_normalize(jax.lax.stop_gradient(z))).sum(-1)


def dino(
    student: jax.Array,
    teacher: jax.Array,
    centre: jax.Array,
    student_temp: float | jax.Array = 0.1,
    teacher_temp: float | jax.Array = 0.04,
    *,
    skip_same: bool = True,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """DINO (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", eq. 1 to 3), in nats.

    Mean over the pairs of a teacher view t and a student view s != t of the cross-entropy between
    softmax((teacher_t - centre) / teacher_temp) and softmax(student_s / student_temp). No gradient reaches the
    teacher's logits or the centre.

    Args:
        student: [S, N, K], logits of all crops.
        teacher: [T, N, K], logits of the global crops; the student's first T views are the same crops.
        centre: [K], running mean of the teacher's logits.
        student_temp, teacher_temp: temperatures.
        skip_same: leaves out the pairs in which teacher and student see the same crop.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).

    Raises:
        UserError: no pair is left (S = T = 1 with `skip_same`).
    """
    weights = weights_of(weights, student.shape[1])
    student, teacher = present(weights, student, teacher, axis=1)
    target_TxNxK = _targets(teacher, centre, teacher_temp)
    values = _across_views(target_TxNxK, _log_softmax(student, student_temp), skip_same)
    return weighted_mean(values, weights, reduce)


def ibot(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    centre: jax.Array,
    student_temp: float | jax.Array = 0.1,
    teacher_temp: float | jax.Array = 0.04,
    *,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Masked image modelling of iBOT (Zhou et al. 2022, "iBOT: Image BERT Pre-Training with Online Tokenizer", eq. 2),
    in nats.

    The cross-entropy between softmax((teacher - centre) / teacher_temp) and softmax(student / student_temp) at the
    masked patches of one view; the value of an image is the mean over its masked patches. No gradient reaches the
    teacher's logits or the centre.

    Args:
        student: [N, P, K], logits of the patches of the masked view.
        teacher: [N, P, K], logits of the patches of the same view without a mask.
        mask: [N, P], True where the patch was masked. An image without masked patches counts with 0, as in the authors'
            code.
        centre: [K], running mean of the teacher's logits.
        student_temp, teacher_temp: temperatures.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, student.shape[0])
    student, teacher = present(weights, student, teacher)
    cross_entropy_NxP = -(_targets(teacher, centre, teacher_temp) * _log_softmax(student, student_temp)).sum(-1)
    mask = mask.astype(bool)
    values = jnp.where(mask, cross_entropy_NxP, 0.0).sum(-1) / jnp.maximum(mask.sum(-1), 1)
    return weighted_mean(values, weights, reduce)


def _targets(teacher: jax.Array, centre: jax.Array, temperature: float | jax.Array) -> jax.Array:
    centred = teacher.astype(jnp.float32) - centre.astype(jnp.float32)
    return jax.lax.stop_gradient(jnp.exp(_log_softmax(centred, temperature)))


def swav(
    global_scores: jax.Array,
    local_scores: jax.Array | None = None,
    temperature: float | jax.Array = 0.1,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue: jax.Array | None = None,
    queue_weights: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Swapped prediction of SwAV (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments", eq. 2 and, for multi-crop, eq. 6), in nats.

    Mean over the pairs of a global view g and another view v of the cross-entropy between the assignment of g, by
    `assignments`, and softmax(scores_v / temperature). No gradient reaches the assignments.

    Args:
        global_scores: [G, N, K], dot products of embeddings and prototypes, both normalised.
        local_scores: [L, N, K] of small crops, which get no assignment; None: none.
        temperature: temperature of the softmax.
        epsilon, iterations, queue, queue_weights: see `assignments`.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).

    Raises:
        UserError: no pair is left (G = 1 and no local scores).
    """
    weights = weights_of(weights, global_scores.shape[1])
    target = assignments(
        global_scores,
        epsilon=epsilon,
        iterations=iterations,
        queue=queue,
        queue_weights=queue_weights,
        weights=weights,
    )
    return swapped(global_scores, local_scores, target, temperature, weights=weights, reduce=reduce)


def swapped(
    global_scores: jax.Array,
    local_scores: jax.Array | None,
    target: jax.Array,
    temperature: float | jax.Array,
    *,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """The loss `swav` for given assignments `target` [G, N, K]."""
    scores = global_scores if local_scores is None else jnp.concatenate([global_scores, local_scores])
    weights = weights_of(weights, scores.shape[1])
    scores, target = present(weights, scores, jax.lax.stop_gradient(target.astype(jnp.float32)), axis=1)
    values = _across_views(target, _log_softmax(scores, temperature), skip_same=True)
    return weighted_mean(values, weights, reduce)


def assignments(
    scores: jax.Array,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue: jax.Array | None = None,
    queue_weights: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Balanced assignments of each view, by `sinkhorn`, without gradient (Caron et al. 2020, section 3.1).

    Args:
        scores: [G, N, K].
        epsilon, iterations: see `sinkhorn`; 0 iterations: softmax(scores / epsilon), without balance.
        queue: [G, Q, K], scores of earlier examples, which join the batch; None: none.
        queue_weights: [Q], 0 = not yet filled; None: all 1.
        weights: [N], 0 = padding.

    Returns:
        float32 [G, N, K]; rows sum to 1.
    """
    scores, n = jax.lax.stop_gradient(scores), scores.shape[1]
    weights = weights_of(weights, n)
    if iterations == 0:
        return jnp.exp(_log_softmax(scores, epsilon))
    if queue is not None:
        scores = jnp.concatenate([scores, jax.lax.stop_gradient(queue)], 1)
        weights = jnp.concatenate([weights, weights_of(queue_weights, queue.shape[1])])
    balance = lambda view: sinkhorn(view, epsilon=epsilon, iterations=iterations, weights=weights)  # noqa: E731
    return jnp.stack([balance(view)[:n] for view in scores])


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
        float32 [N, K]; rows sum to 1. Differentiable; `assignments` stops the gradient.
    """
    weights = weights_of(weights, scores.shape[0])
    log_w = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1.0)), NEG_INF)[:, None]

    def iterate(log_q, _):
        counted = jnp.where(log_w > NEG_INF, log_q + log_w, NEG_INF)  # padding may hold NaN
        log_q = log_q - jax.nn.logsumexp(counted, axis=0, keepdims=True)
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


def _across_views(target_TxNxK: jax.Array, log_q_SxNxK: jax.Array, skip_same: bool) -> jax.Array:
    """Mean cross-entropy [N] over the pairs (t, s); `skip_same` leaves out t = s."""
    t, s = len(target_TxNxK), len(log_q_SxNxK)
    counted_TxS = ~jnp.eye(t, s, dtype=bool) if skip_same else jnp.ones((t, s), bool)
    pairs = t * s - (min(t, s) if skip_same else 0)
    if pairs == 0:
        raise UserError(
            f"no pair of different views: got {t} target and {s} predicting views, one number must be at least 2"
        )
    cross_entropy_NxTxS = -jnp.einsum("tnk,snk->nts", target_TxNxK, log_q_SxNxK, precision=EXACT)
    return jnp.where(counted_TxS, cross_entropy_NxTxS, 0.0).sum((1, 2)) / pairs
