"""Losses whose targets are predictions of a network: distillation, pseudo-labels, consistency, replaced tokens."""

from typing import Literal

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.losses.classification import binary_cross_entropy, cross_entropy
from ssljax.losses.reduction import present, weighted_mean, weights_of


def distillation(
    student: jax.Array,
    teacher: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    scale: bool = True,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Knowledge distillation (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2),
    in nats.

    KL(softmax(teacher / t), softmax(student / t)), times t^2, which keeps the size of gradients. No gradient reaches
    the teacher. The paper writes the cross-entropy, which differs by the entropy of the teacher: a constant.

    Args:
        student, teacher: [N, C], logits.
        temperature: t > 0.
        scale: False leaves out the factor t^2.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, student.shape[0])
    student, teacher = present(weights, student, teacher)
    log_p = jax.lax.stop_gradient(jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature))
    log_q = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    p = jnp.exp(log_p)
    values = jnp.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
    values = values * temperature**2 if scale else values
    return weighted_mean(values, weights, reduce)


def fixmatch(
    weak: jax.Array,
    strong: jax.Array,
    *,
    threshold: float = 0.95,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Unlabelled loss of FixMatch (Sohn et al. 2020, "FixMatch", eq. 4), in nats.

    The cross-entropy of the strong view with the most probable class of the weak view, where that is at least
    `threshold` probable; other examples count with 0, as in the paper's mean over all unlabelled examples. With a
    threshold of 0 and one view it is the pseudo-label loss of Lee 2013. No gradient reaches the weak view.

    Args:
        weak, strong: [N, C], logits of the weakly and the strongly augmented view.
        threshold: least probability of a pseudo-label (tau).
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, weak.shape[0])
    weak, strong = present(weights, weak, strong)
    p = jax.nn.softmax(jax.lax.stop_gradient(weak.astype(jnp.float32)))
    confident = p.max(-1) >= threshold
    values, _ = cross_entropy(strong, p.argmax(-1), reduce=False)
    return weighted_mean(jnp.where(confident, values, 0.0), weights, reduce)


def mean_teacher(
    student: jax.Array,
    teacher: jax.Array,
    *,
    distance: Literal["mse", "kl"] = "mse",
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Consistency cost of mean teacher (Tarvainen & Valpola 2017, "Mean teachers are better role models").

    "mse": the squared difference of the probabilities, mean over classes; "kl": KL(teacher, student) in nats. No
    gradient reaches the teacher.

    Args:
        student, teacher: [N, C], logits.
        distance: "mse" or "kl".
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).

    Raises:
        UserError: another `distance`.
    """
    if distance not in ("mse", "kl"):
        raise UserError(f"distance: got {distance!r}, must be 'mse' or 'kl'")
    if distance == "kl":
        return distillation(student, teacher, weights=weights, reduce=reduce)
    weights = weights_of(weights, student.shape[0])
    student, teacher = present(weights, student, teacher)
    target = jax.lax.stop_gradient(jax.nn.softmax(teacher.astype(jnp.float32)))
    values = jnp.square(jax.nn.softmax(student.astype(jnp.float32)) - target).mean(-1)
    return weighted_mean(values, weights, reduce)


def deep_cluster(
    logits: jax.Array,
    clusters: jax.Array,
    sizes: jax.Array | None = None,
    *,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """DeepCluster (Caron et al. 2018, "Deep Clustering for Unsupervised Learning of Visual Features", eq. 1), in nats:
    the cross-entropy with the clusters of k-means.

    Args:
        logits: [N, K].
        clusters: int [N].
        sizes: [K], examples of each cluster: an example is weighted by the inverse of its cluster's size, as when
            clusters are drawn uniformly (section 3.3); None: equally.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, logits.shape[0])
    if sizes is not None:
        weights = weights / jnp.maximum(sizes[clusters], 1)
    return cross_entropy(logits, clusters, weights=weights, reduce=reduce)


def electra(
    logits: jax.Array,
    replaced: jax.Array,
    mask: jax.Array | None = None,
    *,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Discriminator loss of ELECTRA (Clark et al. 2020, "ELECTRA", section 2), in nats, mean over the tokens of the
    batch.

    Each token is classified as original or replaced. A sampled token that equals the original counts as original. The
    method adds it, times 50, to the masked language modelling loss of the generator.

    Args:
        logits: [N, L], of "replaced".
        replaced: bool [N, L].
        mask: [N, L], False for padding; None: all are tokens.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]): mean over the tokens of a text, weighted by their number.
    """
    weights = weights_of(weights, logits.shape[0])
    (logits,) = present(weights, logits)
    tokens = jnp.ones(logits.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)
    logits = jnp.where(tokens > 0, logits, 0)
    values, _ = binary_cross_entropy(logits.reshape(-1), replaced.reshape(-1), reduce=False)
    count = tokens.sum(-1)
    mean = (tokens * values.reshape(logits.shape)).sum(-1) / jnp.maximum(count, 1)
    return weighted_mean(mean, weights * count, reduce)
