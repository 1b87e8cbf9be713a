"""Metrics that distinguish a healthy representation from a collapsed one.

Most have a gradient, so they can be used as losses too.
"""

import jax
import jax.numpy as jnp

from ssljax.losses.reduction import EXACT, NEG_INF, l2_normalize, present, weighted_mean, weights_of


def alignment(
    z1: jax.Array,
    z2: jax.Array,
    alpha: float = 2.0,
    *,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Mean distance to the power alpha between the two views of an example on the unit sphere; 0 = aligned.

    Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", eq. 3. z1, z2: [N, D], normalised inside; weights [N].
    """
    weights = weights_of(weights, z1.shape[0])
    z1, z2 = present(weights, z1, z2)
    square = jnp.square(l2_normalize(z1) - l2_normalize(z2)).sum(-1)
    if alpha != 2:
        apart = square > 0
        square = jnp.where(apart, jnp.where(apart, square, 1.0) ** (alpha / 2), 0.0)
    return weighted_mean(square, weights, reduce)


def uniformity(z: jax.Array, t: float = 2.0, *, weights: jax.Array | None = None) -> jax.Array:
    """Log of the mean over pairs i != j of exp(-t |z_i - z_j|^2) on the unit sphere: 0 = collapsed, low = uniform.

    Wang & Isola 2020, eq. 4, over pairs of different examples as in the authors' code. z: [N, D], normalised inside;
    weights [N]: the weight of a pair is the product of the two weights. Returns 0 if no pair has weight.
    """
    n = z.shape[0]
    w = weights_of(weights, n)
    z = l2_normalize(present(w, z)[0])
    distance = 2 - 2 * jnp.matmul(z, z.T, precision=EXACT)
    pair = w[:, None] * w[None, :] * (1 - jnp.eye(n))
    total = pair.sum()
    log_sum = jax.nn.logsumexp(jnp.where(pair > 0, -t * distance, NEG_INF), b=jnp.where(pair > 0, pair, 1.0))
    return jnp.where(total > 0, log_sum - jnp.log(jnp.where(total > 0, total, 1.0)), 0.0)


def feature_std(z: jax.Array, *, weights: jax.Array | None = None) -> jax.Array:
    """Standard deviation over examples of each dimension of z / |z|, averaged over dimensions.

    Chen & He 2021, "Exploring Simple Siamese Representation Learning", figure 2: 1 / sqrt(D) for features that are
    spread evenly over the sphere, 0 for collapsed features. z: [N, D]; weights [N].
    """
    w = weights_of(weights, z.shape[0])
    w = (w / jnp.where(w.sum() > 0, w.sum(), 1.0))[:, None]
    z = l2_normalize(present(weights_of(weights, z.shape[0]), z)[0])
    variance = (w * jnp.square(z - (w * z).sum(0))).sum(0)
    spread = variance > 0  # the root has no gradient at 0
    return jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 0.0).mean()


def effective_rank(z: jax.Array, *, weights: jax.Array | None = None) -> jax.Array:
    """Exponential of the entropy of the normalised singular values of z, in [1, min(N, D)].

    Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality"; z is not centred, as in RankMe
    (Garrido et al. 2023). z: [N, D]; weights [N]: row i of z is scaled by sqrt(w_i) first, so a row of weight 2 counts
    as two copies of the row. Returns 0 if z is 0.
    """
    w = weights_of(weights, z.shape[0])
    (z,) = present(w, z.astype(jnp.float32))
    largest = jax.lax.stop_gradient(jnp.abs(z).max())  # the rank does not depend on the scale
    z = z / jnp.where(largest > 0, largest, 1.0)
    s = jnp.linalg.svd(z * jnp.sqrt(w)[:, None], compute_uv=False)
    total = s.sum()
    return jnp.where(total > 0, jnp.exp(entropy(s / jnp.where(total > 0, total, 1.0))), 0.0)


def entropy(p: jax.Array) -> jax.Array:
    """Entropy -sum p log p over the last axis, in nats, with 0 log 0 = 0. p: [..., K] probabilities."""
    p = p.astype(jnp.float32)
    return -(p * jnp.log(jnp.where(p > 0, p, 1.0))).sum(-1)
