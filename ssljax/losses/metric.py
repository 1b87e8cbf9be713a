"""Losses of labelled or paired embeddings: supervised contrastive, pairs, triplets, N-pairs, and noise contrast.

`weights` [N]: an example of weight 0 is in no pair. Losses with a `chunk` compute pairwise matrices for so many anchors
at a time, and again in the backward pass; so their memory grows with N x chunk.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.losses.reduction import EXACT, NEG_INF, l2_normalize, present, weighted_mean, weights_of

CHUNK = 1024


def sup_con(
    z: jax.Array,
    labels: jax.Array,
    *,
    temperature: float | jax.Array,
    form: Literal["out", "in"] = "out",
    base_temperature: float | None = None,
    weights: jax.Array | None = None,
    reduce: bool = True,
    chunk: int = CHUNK,
):
    """Supervised contrastive loss (Khosla et al. 2020, "Supervised Contrastive Learning"), in nats.

    The positives P(i) of anchor i are the other vectors with its label, A(i) all other vectors. "out" (eq. 2):
    -1/|P(i)| times the sum over p in P(i) of log(exp(z_i . z_p / t) / sum over a in A(i) of exp(z_i . z_a / t)). "in"
    (eq. 3): the mean over p stands inside the logarithm. An anchor without positives has weight 0.

    Args:
        z: [N, D], the vectors of all views; L2-normalised inside, in float32.
        labels: int [N].
        temperature: t > 0.
        form: "out" or "in".
        base_temperature: multiplies the loss by t / base_temperature, as the authors' code does (with 0.07); None: by
            1, as in the paper.
        weights: [N], 0 = padding: neither anchor nor positive nor negative.
        reduce: False returns (values [N], weights [N]).
        chunk: anchors whose similarities are in memory at a time.

    Raises:
        UserError: another `form`.
    """
    if form not in ("out", "in"):
        raise UserError(f"form: got {form!r}, must be 'out' or 'in'")
    weights = weights_of(weights, z.shape[0])
    z = l2_normalize(jnp.where((weights > 0)[:, None], z, 0))

    def anchors(own: jax.Array, label: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.matmul(own, z.T, precision=EXACT) / temperature
        others = (weights > 0) & (number[:, None] != jnp.arange(z.shape[0]))
        positive = others & (label[:, None] == labels)
        count = positive.sum(1)
        normaliser = jax.nn.logsumexp(jnp.where(others, logits, NEG_INF), 1)
        if form == "out":
            mean = jnp.where(positive, logits, 0.0).sum(1) / jnp.maximum(count, 1)
        else:
            mean = jax.nn.logsumexp(jnp.where(positive, logits, NEG_INF), 1) - jnp.log(jnp.maximum(count, 1))
        return jnp.where(count > 0, normaliser - mean, 0.0), count

    values, count = _by_anchor(anchors, chunk, z, labels, jnp.arange(z.shape[0]))
    if base_temperature is not None:
        values = values * temperature / base_temperature
    return weighted_mean(values, jnp.where(count > 0, weights, 0.0), reduce)


def contrastive_pairs(
    z: jax.Array,
    labels: jax.Array,
    *,
    margin: float,
    squared: bool = True,
    weights: jax.Array | None = None,
    reduce: bool = True,
    chunk: int = CHUNK,
):
    """Contrastive loss of all pairs of a batch, by their distance d (Hadsell, Chopra, LeCun 2006, "Dimensionality
    Reduction by Learning an Invariant Mapping", eq. 4).

    d^2 for a pair of one label, max(0, margin - d)^2 for others. Hadsell writes 1/2 before both and Y = 1 for pairs of
    different labels; Chopra et al. 2005 have an exponential in place of the hinge. The value of an example is the mean
    over its pairs, so that the loss is the mean over pairs.

    Args:
        z: [N, D], not normalised inside.
        labels: int [N].
        margin: distance beyond which a pair of different labels costs nothing.
        squared: False: d and max(0, margin - d), without squares.
        weights: [N], 0 = padding; other weights only weight the anchors.
        reduce: False returns (values [N], weights [N]).
        chunk: anchors whose distances are in memory at a time.
    """
    weights = weights_of(weights, z.shape[0])
    z = jnp.where((weights > 0)[:, None], z.astype(jnp.float32), 0)

    def anchors(own: jax.Array, label: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        others = (weights > 0) & (number[:, None] != jnp.arange(z.shape[0]))
        square = _squares(own, z)
        distance = _root(square)
        short = jnp.maximum(margin - distance, 0)
        pairs = (square, jnp.square(short)) if squared else (distance, short)
        values = jnp.where(others, jnp.where(label[:, None] == labels, *pairs), 0.0)
        return values.sum(1) / jnp.maximum(others.sum(1), 1), others.sum(1)

    values, count = _by_anchor(anchors, chunk, z, labels, jnp.arange(z.shape[0]))
    return weighted_mean(values, jnp.where(count > 0, weights, 0.0), reduce)


def triplet(
    z: jax.Array,
    labels: jax.Array,
    *,
    margin: float = 0.2,
    mining: Literal["all", "hard", "semi"] = "all",
    squared: bool = True,
    soft: bool = False,
    reduction: Literal["mean", "nonzero", "sum"] = "mean",
    normalize: bool = True,
    weights: jax.Array | None = None,
    chunk: int = 64,
) -> jax.Array:
    """Triplet loss: an anchor is nearer to a positive (its label) than to a negative (another label), by a margin.

    max(0, d(a, p) - d(a, n) + margin) (Schroff et al. 2015, "FaceNet", eq. 2), over these triplets:

    - "all": all of the batch (Hermans et al. 2017, "In Defense of the Triplet Loss", eq. 6).
    - "hard": one of each anchor: its farthest positive and its nearest negative (eq. 5).
    - "semi": one of each anchor and positive: the nearest negative that is farther away than the positive or, without
      one, the farthest negative (as TensorFlow Addons does; Schroff et al. draw one within the margin).

    Args:
        z: [N, D].
        labels: int [N].
        margin: the margin.
        mining: "all", "hard" or "semi".
        squared: True: d is the squared distance, as in Schroff et al.; False: the distance, as in Hermans et al.
        soft: True: log(1 + exp(d(a, p) - d(a, n))) in place of the hinge and its margin.
        reduction: "mean": over all triplets; "nonzero": over those whose loss is above 0; "sum".
        normalize: True: vectors are L2-normalised inside, as in Schroff et al.
        weights: [N], 0 = padding; the weight of a triplet is that of its anchor.
        chunk: anchors whose triplets are in memory at a time; of "all" and "semi", each anchor has N^2.

    Raises:
        UserError: another `mining` or `reduction`.
    """
    for name, value, allowed in (
        ("mining", mining, ("all", "hard", "semi")),
        ("reduction", reduction, ("mean", "nonzero", "sum")),
    ):
        if value not in allowed:
            raise UserError(f"{name}: got {value!r}, must be one of {', '.join(map(repr, allowed))}")
    weights = weights_of(weights, z.shape[0])
    z = jnp.where((weights > 0)[:, None], z.astype(jnp.float32), 0)
    z = l2_normalize(z) if normalize else z
    chosen = {"all": _all, "hard": _hardest, "semi": _semi_hard}[mining]

    def anchors(own: jax.Array, label: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        there, other = weights > 0, number[:, None] != jnp.arange(z.shape[0])
        positive = there & other & (label[:, None] == labels)
        negative = there & (label[:, None] != labels)
        distance = _squares(own, z) if squared else _root(_squares(own, z))
        difference, exists = chosen(distance, positive, negative)
        values = jax.nn.softplus(difference) if soft else jnp.maximum(difference + margin, 0)
        values = jnp.where(exists, values, 0.0)
        counted = exists & (values > 0) if reduction == "nonzero" else exists
        return values.sum(range(1, values.ndim)), counted.sum(range(1, values.ndim))

    values, count = _by_anchor(anchors, chunk, z, labels, jnp.arange(z.shape[0]))
    total = (weights * values).sum()
    if reduction == "sum":
        return total
    number = (weights * count).sum()
    return total / jnp.where(number > 0, number, 1.0)


def _all(distance: jax.Array, positive: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    return distance[:, :, None] - distance[:, None, :], positive[:, :, None] & negative[:, None, :]


def _hardest(distance: jax.Array, positive: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    farthest = jnp.max(jnp.where(positive, distance, -jnp.inf), 1)
    nearest = jnp.min(jnp.where(negative, distance, jnp.inf), 1)
    exists = positive.any(1) & negative.any(1)
    return jnp.where(exists, farthest, 0.0) - jnp.where(exists, nearest, 0.0), exists


def _semi_hard(distance: jax.Array, positive: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    beyond = negative[:, None, :] & (distance[:, None, :] > distance[:, :, None])
    nearest = jnp.min(jnp.where(beyond, distance[:, None, :], jnp.inf), 2)
    farthest = jnp.max(jnp.where(negative, distance, -jnp.inf), 1)[:, None]
    exists = positive & negative.any(1)[:, None]
    chosen = jnp.where(beyond.any(2), nearest, farthest)
    return distance - jnp.where(exists, chosen, 0.0), exists


def n_pair(
    anchor: jax.Array,
    positive: jax.Array,
    *,
    l2: float = 0.0,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Multi-class N-pair loss (Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", eq.
    7).

    log(1 + sum over j != i of exp(a_i . p_j - a_i . p_i)) + l2 (|a_i|^2 + |p_i|^2): dot products, without temperature
    and without normalisation.

    Args:
        anchor, positive: [N, D]; row i of both has one class, different from the others.
        l2: weight of the squared norms, which keep the products small.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, anchor.shape[0])
    anchor, positive = present(weights, anchor.astype(jnp.float32), positive.astype(jnp.float32))
    logits = jnp.where((weights > 0)[None], jnp.matmul(anchor, positive.T, precision=EXACT), NEG_INF)
    values = jax.nn.logsumexp(logits, 1) - jnp.diagonal(logits)
    values = values + l2 * (jnp.square(anchor).sum(-1) + jnp.square(positive).sum(-1))
    return weighted_mean(values, weights, reduce)


def nce(
    pos_logit: jax.Array,
    noise_logits: jax.Array,
    log_noise_pos: jax.Array,
    log_noise: jax.Array,
    *,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Noise-contrastive estimation with k noise samples per data sample (Gutmann & Hyvarinen 2010, 2012, eq. 8), in
    nats.

    A sample u is classified as data or noise by the logit log p(u) - log q(u) - log k, q the density of the noise. The
    model p need not be normalised: at the optimum it is the density of the data. Without log k it would be that
    density over k.

    Args:
        pos_logit: [N], log p of the data.
        noise_logits: [N, k], log p of the noise samples.
        log_noise_pos: [N], log q of the data.
        log_noise: [N, k], log q of the noise samples.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]): the sum over a data sample and its k noise samples.
    """
    weights, log_k = weights_of(weights, pos_logit.shape[0]), math.log(noise_logits.shape[-1])
    data = pos_logit.astype(jnp.float32) - log_noise_pos - log_k
    noise = noise_logits.astype(jnp.float32) - log_noise - log_k
    data, noise = present(weights, data, noise)
    values = jax.nn.softplus(-data) + jax.nn.softplus(noise).sum(-1)
    return weighted_mean(values, weights, reduce)


@jax.custom_vjp
def _squares(x_NxD: jax.Array, y_MxD: jax.Array) -> jax.Array:
    """Squared distances [N, M], 0 for equal vectors; differences lose less to rounding than inner products."""
    return jnp.square(x_NxD[:, None, :] - y_MxD[None, :, :]).sum(-1)


def _squares_back(saved: tuple[jax.Array, jax.Array], g_NxM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients by matrix products, without an array [N, M, D]."""
    x, y = saved
    dx = g_NxM.sum(1)[:, None] * x - jnp.matmul(g_NxM, y, precision=EXACT)
    dy = g_NxM.sum(0)[:, None] * y - jnp.matmul(g_NxM.T, x, precision=EXACT)
    return 2 * dx, 2 * dy


_squares.defvjp(lambda x, y: (_squares(x, y), (x, y)), _squares_back)


def _root(square: jax.Array) -> jax.Array:
    """The square root, with gradient 0 at 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _by_anchor(function: Callable[..., Any], chunk: int, *arrays: jax.Array) -> Any:
    """Applies a function of anchors to `chunk` of them at a time, and again in the backward pass.

    Args:
        function: (arrays of some anchors) -> arrays [anchors].
        chunk: largest number of anchors.
        arrays: [N, ...].
    """
    n = arrays[0].shape[0]
    if n <= chunk:
        return function(*arrays)
    count = math.ceil(n / chunk)
    size = math.ceil(n / count)
    cut = [jnp.pad(a, ((0, count * size - n), *((0, 0),) * (a.ndim - 1))) for a in arrays]
    cut = [a.reshape(count, size, *a.shape[1:]) for a in cut]
    found = jax.lax.map(lambda block: jax.checkpoint(function)(*block), tuple(cut))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], found)
