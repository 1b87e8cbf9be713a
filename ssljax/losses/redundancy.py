"""Losses of the statistics of a batch: they keep embeddings informative without comparing them with negatives.

`weights` [N]: the weight of an example in all means, 0 = padding; a weight of 2 counts as two equal examples.
"""

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.losses.reduction import EXACT, NEG_INF, l2_normalize, weighted_mean, weights_of


def barlow_twins(
    z1: jax.Array,
    z2: jax.Array,
    *,
    lambda_offdiag: float = 5e-3,
    scale: float = 1.0,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Barlow Twins (Zbontar et al. 2021, "Self-Supervised Learning via Redundancy Reduction", eq. 1 and 2).

    sum_d (1 - C_dd)^2 + lambda_offdiag sum over d != e of C_de^2, C the correlation over the batch of dimension d of
    view 1 with dimension e of view 2. As in the authors' code, dimensions are divided by the root of their biased
    variance plus 1e-5.

    Args:
        z1, z2: [N, D] the two views.
        lambda_offdiag: weight of the redundancy term.
        scale: factor of the loss; the authors' code offers it (0.024 in their first recipe).
        weights: see the module.
    """
    weights = weights_of(weights, z1.shape[0])
    first, second = _standardized(z1, weights, 1e-5), _standardized(z2, weights, 1e-5)
    total = jnp.where(weights.sum() > 0, weights.sum(), 1.0)
    c_DxD = jnp.matmul((weights[:, None] * first).T, second, precision=EXACT) / total
    loss = jnp.square(1 - jnp.diagonal(c_DxD)).sum() + lambda_offdiag * _off_diagonal(c_DxD)
    return scale * jnp.where(weights.sum() > 0, loss, 0.0)


def vicreg(
    z1: jax.Array,
    z2: jax.Array,
    *,
    sim: float = 25.0,
    var: float = 25.0,
    cov: float = 1.0,
    eps: float = 1e-4,
    halve_variance: bool = True,
    weights: jax.Array | None = None,
) -> jax.Array:
    """VICReg (Bardes, Ponce, LeCun 2022, "VICReg: Variance-Invariance-Covariance Regularization", eq. 6).

    sim s + var (v(z1) + v(z2)) / 2 + cov (c(z1) + c(z2)):

    - invariance s: the squared difference of the views, mean over examples and dimensions, as in the authors' code
      (eq. 5 sums over dimensions).
    - variance v: the mean over dimensions of max(0, 1 - sqrt(Var + eps)) (eq. 1, 2), Var unbiased.
    - covariance c: the sum of the squared off-diagonal entries of the unbiased covariance, divided by D (eq. 3, 4).

    Args:
        z1, z2: [N, D] the two views.
        sim, var, cov: weights of the three parts.
        eps: is added to variances.
        halve_variance: True halves the sum of the two variance terms, as the authors' code does; False: eq. 6.
        weights: see the module.
    """
    weights = weights_of(weights, z1.shape[0])
    present = (weights > 0)[:, None]
    first, second = (jnp.where(present, z.astype(jnp.float32), 0) for z in (z1, z2))
    invariance = weighted_mean(jnp.square(first - second).mean(-1), weights)
    moments = [_variance_and_covariance(z, weights, eps) for z in (first, second)]
    variance, covariance = (sum(parts) for parts in zip(*moments))
    loss = sim * invariance + var * variance / (2 if halve_variance else 1) + cov * covariance
    return jnp.where(weights.sum() > 0, loss, 0.0)


def koleo(z: jax.Array, *, eps: float = 1e-8, weights: jax.Array | None = None, reduce: bool = True):
    """Kozachenko-Leonenko regulariser (Sablayrolles et al. 2019, "Spreading vectors for similarity search", eq. 2).

    -log(d_i + eps), d_i the distance of vector i to its nearest neighbour in the batch, as in DINOv2 (Oquab et al.
    2023).

    Args:
        z: [N, D]; L2-normalised inside, in float32.
        eps: is added to the distance.
        weights: [N], 0 = padding: no vector and no neighbour. Without another vector, the value is 0.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, z.shape[0])
    present = weights > 0
    z = l2_normalize(jnp.where(present[:, None], z, 0))
    similarity = jax.lax.stop_gradient(jnp.matmul(z, z.T, precision=EXACT))
    others = present[None, :] & ~jnp.eye(z.shape[0], dtype=bool)
    nearest = z[jnp.argmax(jnp.where(others, similarity, NEG_INF), 1)]
    square = jnp.square(z - nearest).sum(-1)
    apart = square > 0
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)
    values = jnp.where(others.any(1), -jnp.log(distance + eps), 0.0)
    return weighted_mean(values, weights, reduce)


def hsic(
    z: jax.Array,
    *,
    gamma: float = 3.0,
    bandwidth: float | jax.Array = 1.0,
    weights: jax.Array | None = None,
) -> jax.Array:
    """SSL-HSIC (Li et al. 2021, "Self-Supervised Learning with Kernel Dependence Maximization", section 3):
    -HSIC(Z, Y) + gamma sqrt(HSIC(Z, Z)), Y the identity of the image.

    The kernel is the inverse multiquadric k(a, b) = c / sqrt(c^2 + |a - b|^2). HSIC(Z, Y) is the mean of k over pairs
    of different views of one image, minus its mean over all pairs of vectors; the constant factor and addend of the
    paper are left out. HSIC(Z, Z) is the biased estimate, the mean square of the centred kernel matrix.

    Args:
        z: [N, V, D], V >= 2 views of N images; L2-normalised inside, in float32.
        gamma: weight of HSIC(Z, Z).
        bandwidth: c of the kernel.
        weights: [N], see the module.

    Raises:
        UserError: V < 2.
    """
    n, v, _ = z.shape
    if v < 2:
        raise UserError(f"z: got {v} view of each image, must be at least 2")
    weights = weights_of(weights, n)
    z = l2_normalize(jnp.where((weights > 0)[:, None, None], z, 0)).reshape(n * v, -1)
    share = jnp.repeat(weights, v)
    share = share / jnp.where(share.sum() > 0, share.sum(), 1.0)
    square = jnp.maximum(2 - 2 * jnp.matmul(z, z.T, precision=EXACT), 0)
    k = bandwidth / jnp.sqrt(bandwidth**2 + square)
    example, number = jnp.repeat(jnp.arange(n), v), jnp.arange(n * v)
    partner = (example[:, None] == example) & (number[:, None] != number)
    row = jnp.matmul(k, share, precision=EXACT)
    mean = jnp.dot(share, row, precision=EXACT)
    aligned = (share[:, None] * jnp.where(partner, k, 0.0)).sum() / (v - 1)
    centred = k - row[:, None] - row[None, :] + mean
    spread = (share[:, None] * share[None, :] * jnp.square(centred)).sum()
    positive = spread > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, spread, 1.0)), 0.0)
    return jnp.where(weights.sum() > 0, mean - aligned + gamma * root, 0.0)


def sigreg(
    z: jax.Array,
    directions: jax.Array,
    *,
    knots: int = 17,
    limit: float = 5.0,
    weights: jax.Array | None = None,
) -> jax.Array:
    """SIGReg (Balestriero & LeCun 2025, "LeJEPA"): embeddings are pushed towards a standard normal distribution.

    The mean over directions a of the Epps-Pulley statistic of the projections z . a: N times the integral over t of
    |mean of exp(i t z . a) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the trapezoid rule on [-limit, limit]. Its cost is
    linear in N and in the number of directions.

    Args:
        z: [N, D].
        directions: [D, M]; scaled to length 1 inside. The method draws others at every step.
        knots: points of the integral.
        limit: end of the integral.
        weights: see the module; N is their sum.
    """
    weights = weights_of(weights, z.shape[0])
    z = jnp.where((weights > 0)[:, None], z.astype(jnp.float32), 0)
    projected_NxM = jnp.matmul(z, l2_normalize(directions.T).T, precision=EXACT)
    total = weights.sum()
    share = (weights / jnp.where(total > 0, total, 1.0))[:, None]
    points = jnp.linspace(-limit, limit, knots)
    normal = jnp.exp(-jnp.square(points) / 2)

    def error(t: jax.Array, density: jax.Array) -> jax.Array:
        real, imaginary = (share * f(t * projected_NxM) for f in (jnp.cos, jnp.sin))
        return (jnp.square(real.sum(0) - density) + jnp.square(imaginary.sum(0))) * density  # [M]

    errors = jax.lax.map(lambda point: jax.checkpoint(error)(*point), (points, normal))
    return total * jnp.trapezoid(errors, points, axis=0).mean()


def _standardized(z: jax.Array, weights: jax.Array, eps: float) -> jax.Array:
    """Dimensions with mean 0 and biased variance 1 over the batch; zeros for padding."""
    present = (weights > 0)[:, None]
    z = jnp.where(present, z.astype(jnp.float32), 0)
    share = (weights / jnp.where(weights.sum() > 0, weights.sum(), 1.0))[:, None]
    centred = jnp.where(present, z - (share * z).sum(0), 0)
    return centred * jax.lax.rsqrt((share * jnp.square(centred)).sum(0) + eps)


def _variance_and_covariance(z: jax.Array, weights: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    total = weights.sum()
    share = (weights / jnp.where(total > 0, total, 1.0))[:, None]
    centred = jnp.where((weights > 0)[:, None], z - (share * z).sum(0), 0)
    degrees = jnp.maximum(total - 1, 1.0)
    covariance = jnp.matmul((weights[:, None] * centred).T, centred, precision=EXACT) / degrees
    hinge = jnp.maximum(1 - jnp.sqrt(jnp.diagonal(covariance) + eps), 0).mean()
    return hinge, _off_diagonal(covariance) / z.shape[1]


def _off_diagonal(matrix: jax.Array) -> jax.Array:
    """Sum of the squared entries off the diagonal."""
    return jnp.square(jnp.where(jnp.eye(len(matrix), dtype=bool), 0.0, matrix)).sum()
