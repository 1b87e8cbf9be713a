"""Losses that identify the partner of an example among all other examples of the batch.

Each has three forms with equal values and gradients, chosen by `form`: "dense", "chunked" and "ring"
(`ssljax.losses.pairs`). The first stores a matrix of all pairs of the batch; the others do not.

Common arguments:

- weights: [N]; an example of weight 0 is neither anchor nor negative. Other weights only weight the anchors.
- reduce: False returns (values [N], weights [N]).
- accuracy: True, with `reduce=False`, returns (values [N], weights [N], correct [N]). `correct` is the share of the
  anchors of an example (two, or one for losses of one direction) to which their partner is more similar than all other
  examples, without gradient. A negative whose cosine is equal up to 1e-6 counts against the anchor.
- form, chunk: form of the computation, and the largest number of rows and columns of a block of logits.
- axis_name: for a batch that is split over this mesh axis (or tuple of mesh axes), in the order of its devices: arrays
  of examples are then those of this device, and the loss is called inside a `shard_map`. The reduced loss is the mean
  over the global batch, equal on all devices. To differentiate, take the gradient of the whole `shard_map`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ssljax.losses.pairs import CHUNK, Form, LogSumExp, Negatives, Side, SumSoftplus, negatives_of
from ssljax.losses.reduction import EXACT, NEG_INF, l2_normalize, weighted_mean, weights_of

TIE = 1e-6
"""Cosines that differ by less count as equal: equal inputs differ by rounding."""


def nt_xent(
    z1: jax.Array,
    z2: jax.Array,
    *,
    temperature: float | jax.Array,
    weights: jax.Array | None = None,
    reduce: bool = True,
    accuracy: bool = False,
    form: Form = "dense",
    axis_name: Any = None,
    chunk: int = CHUNK,
):
    """NT-Xent (Chen et al. 2020, "A Simple Framework for Contrastive Learning", eq. 1), in nats.

    For each of the 2N views i with partner j: -log exp(s_ij / t) / sum over k != i of exp(s_ik / t), s the cosine.
    The value of an example is the mean over its two views.

    Args:
        z1, z2: [N, D] the two views; L2-normalised inside, in float32.
        temperature: t > 0.
        weights, reduce, accuracy, form, axis_name, chunk: see the module.
    """
    weights, first, second, scale, views = _two_views(z1, z2, temperature, weights, form, axis_name, chunk)
    positive = scale * (first * second).sum(-1)
    return _matched(_softmax_loss(positive, *views), positive, views, scale, weights, reduce, accuracy, axis_name)


def decoupled_contrastive(
    z1: jax.Array,
    z2: jax.Array,
    *,
    temperature: float | jax.Array,
    weighted: bool = False,
    sigma: float = 0.5,
    weights: jax.Array | None = None,
    reduce: bool = True,
    accuracy: bool = False,
    form: Form = "dense",
    axis_name: Any = None,
    chunk: int = CHUNK,
):
    """Decoupled contrastive loss (Yeh et al. 2022, "Decoupled Contrastive Learning", eq. 6), in nats.

    NT-Xent without the positive in the denominator: -w s_ij / t + log sum over the views k of other examples of
    exp(s_ik / t). The value of an example is the mean over its two views. It has no lower bound.

    Args:
        z1, z2: [N, D] the two views; L2-normalised inside, in float32.
        temperature: t > 0.
        weighted: True: w = 2 - exp(s_ij / sigma) / mean of exp(s / sigma) over the examples (eq. 7, DCLW), which
            weights hard positives more; gradients pass through w, as in the authors' code (the library Lightly stops
            them). False: w = 1.
        sigma: sigma of w.
        weights, reduce, accuracy, form, axis_name, chunk: see the module.
    """
    weights, first, second, scale, views = _two_views(z1, z2, temperature, weights, form, axis_name, chunk)
    cosine = (first * second).sum(-1)
    counted = 2 - _relative(cosine / sigma, weights, axis_name) if weighted else 1.0
    values = sum(_above(found) for found in views) / 2 - counted * scale * cosine
    return _matched(values, scale * cosine, views, scale, weights, reduce, accuracy, axis_name)


def info_nce(
    query: jax.Array,
    keys: jax.Array,
    negatives: jax.Array | None = None,
    *,
    temperature: float | jax.Array,
    normalize: bool = True,
    weights: jax.Array | None = None,
    reduce: bool = True,
    accuracy: bool = False,
    form: Form = "dense",
    axis_name: Any = None,
    chunk: int = CHUNK,
):
    """InfoNCE in one direction (van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding",
    eq. 4), in nats.

    -log exp(q_i . k_i / t) / (exp(q_i . k_i / t) + sum over negatives n of exp(q_i . n / t)). The negatives are the
    keys of the other examples or, if given, `negatives` alone, as in MoCo (He et al. 2020, eq. 1).

    Args:
        query: [N, D].
        keys: [N, D]; row i is the positive of query i.
        negatives: [K, D], shared by all queries; with an `axis_name`, the part of this device. None: the other keys.
        temperature: t > 0.
        normalize: True: all vectors are L2-normalised inside, in float32.
        weights, reduce, accuracy, form, axis_name, chunk: see the module.
    """
    weights, positive, rows, scale = _one_direction(
        query, keys, negatives, temperature, normalize, weights, form, axis_name, chunk
    )
    values = jax.nn.softplus(rows.value - positive)
    return _matched(values, positive, (rows,), scale, weights, reduce, accuracy, axis_name)


def moco_v3(
    query: jax.Array,
    keys: jax.Array,
    *,
    temperature: float | jax.Array,
    scale: bool = True,
    weights: jax.Array | None = None,
    reduce: bool = True,
    accuracy: bool = False,
    form: Form = "dense",
    axis_name: Any = None,
    chunk: int = CHUNK,
):
    """The loss of MoCo v3 in one direction (Chen, Xie, He 2021, "An Empirical Study of Training Self-Supervised Vision
    Transformers", eq. 1 and algorithm 1): 2 t times `info_nce` with the other keys of the batch as negatives.

    No gradient reaches the keys. The method adds both directions.

    Args:
        query: [N, D], predictions; L2-normalised inside, in float32.
        keys: [N, D], projections of the momentum encoder; L2-normalised inside.
        temperature: t > 0.
        scale: False leaves out the factor 2 t.
        weights, reduce, accuracy, form, axis_name, chunk: see the module.
    """
    keywords: dict[str, Any] = {"form": form, "axis_name": axis_name, "chunk": chunk}
    keys, factor = jax.lax.stop_gradient(keys), 2 * temperature if scale else 1.0
    found = info_nce(
        query, keys, temperature=temperature, weights=weights, reduce=reduce, accuracy=accuracy, **keywords
    )
    return factor * found if reduce else (factor * found[0], *found[1:])


def graph_cl(
    z1: jax.Array,
    z2: jax.Array,
    *,
    temperature: float | jax.Array,
    positive_in_denominator: bool = False,
    weights: jax.Array | None = None,
    reduce: bool = True,
    accuracy: bool = False,
    form: Form = "dense",
    axis_name: Any = None,
    chunk: int = CHUNK,
):
    """The loss of GraphCL in one direction (You et al. 2020, "Graph Contrastive Learning with Augmentations", eq. 3),
    in nats: view 1 of a graph against view 2 of all graphs.

    The paper's sum in the denominator leaves out the positive, as its code does; so the loss has no lower bound.

    Args:
        z1, z2: [N, D]; L2-normalised inside, in float32.
        temperature: t > 0.
        positive_in_denominator: True: the positive is part of the sum, which makes this `info_nce`.
        weights, reduce, accuracy, form, axis_name, chunk: see the module.
    """
    weights, positive, rows, scale = _one_direction(z1, z2, None, temperature, True, weights, form, axis_name, chunk)
    values = jax.nn.softplus(rows.value - positive) if positive_in_denominator else _above(rows) - positive
    return _matched(values, positive, (rows,), scale, weights, reduce, accuracy, axis_name)


def simcse(
    z1: jax.Array,
    z2: jax.Array,
    hard: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 0.05,
    hard_weight: float = 0.0,
    symmetric: bool = False,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """The loss of SimCSE (Gao, Yao, Chen 2021, "Simple Contrastive Learning of Sentence Embeddings", eq. 1, 4, 5), in
    nats.

    Sentence i is matched with view 2 of sentence i, against view 2 and, if given, the hard negatives of all sentences.

    Args:
        z1, z2: [N, D]; L2-normalised inside, in float32.
        hard: [N, D], a hard negative of each sentence, such as its contradiction; None: none (unsupervised).
        temperature: t > 0.
        hard_weight: number that is added to the logit of one's own hard negative: the logarithm of alpha of eq. 8.
        symmetric: True: mean of this direction and that from view 2 to view 1; the paper has one.
        weights: [N]; an example of weight 0 is neither anchor nor negative.
        reduce: False returns (values [N], weights [N]).
    """
    weights, example = _examples(weights, z1.shape[0], None)
    scale = 1 / jnp.asarray(temperature, jnp.float32)
    first, second = _unit(z1, example), _unit(z2, example)
    other = None if hard is None else _unit(hard, example)
    values = _simcse(first, second, other, scale, hard_weight, example)
    if symmetric:
        values = (values + _simcse(second, first, other, scale, hard_weight, example)) / 2
    return weighted_mean(values, weights, reduce)


def _simcse(anchors: jax.Array, keys: jax.Array, hard: Any, scale: jax.Array, hard_weight: float, example: jax.Array):
    columns = jnp.broadcast_to(example >= 0, (len(example),) * 2)
    logits = jnp.where(columns, scale * jnp.matmul(anchors, keys.T, precision=EXACT), NEG_INF)
    if hard is not None:
        against = scale * jnp.matmul(anchors, hard.T, precision=EXACT) + hard_weight * jnp.eye(len(example))
        logits = jnp.concatenate([logits, jnp.where(columns, against, NEG_INF)], 1)
    return jax.nn.logsumexp(logits, 1) - jnp.diagonal(logits)


def clip(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    *,
    weights: jax.Array | None = None,
    reduce: bool = True,
    accuracy: bool = False,
    form: Form = "dense",
    axis_name: Any = None,
    chunk: int = CHUNK,
):
    """Symmetric cross-entropy over the N x N image-text similarities (Radford et al. 2021, figure 3), in nats.

    The value of a pair is the mean of image-to-text and text-to-image.

    Args:
        image, text: [N, D], of length 1: they are not normalised inside.
        logit_scale: factor of the cosines: 1 / temperature, the exponential of CLIP's parameter.
        weights, reduce, accuracy, form, axis_name, chunk: see the module.
    """
    weights, example = _examples(weights, image.shape[0], axis_name)
    image, text = logit_scale * _present(image, example), _present(text, example)
    rows_and_columns = negatives_of(
        LogSumExp, Side(image, example), Side(text, example), form=form, axis_name=axis_name, chunk=chunk
    )
    positive = (image * text).sum(-1)
    values = _softmax_loss(positive, *rows_and_columns)
    return _matched(values, positive, rows_and_columns, logit_scale, weights, reduce, accuracy, axis_name)


def siglip(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float,
    *,
    weights: jax.Array | None = None,
    reduce: bool = True,
    accuracy: bool = False,
    form: Form = "dense",
    axis_name: Any = None,
    chunk: int = CHUNK,
):
    """Sigmoid loss of image-text pairs (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", eq. in
    section 3.2 and algorithm 1), in nats.

    Each of the N x N pairs is classified as matching or not, with the logit l = scale cosine + bias: log(1 + exp(-l))
    on the diagonal, log(1 + exp(l)) elsewhere. The value of a pair is the sum over its row and its column, of which
    each negative counts half; the mean over pairs is the paper's sum over all pairs, divided by N.

    Args:
        image, text: [N, D], of length 1: they are not normalised inside.
        logit_scale: factor t of the cosines, the exponential of a learned parameter.
        logit_bias: bias b of the logits, learned; the paper begins with -10.
        weights, reduce, accuracy, form, axis_name, chunk: see the module.
    """
    weights, example = _examples(weights, image.shape[0], axis_name)
    image, text = logit_scale * _present(image, example), _present(text, example)
    offset = jnp.where(example >= 0, jnp.asarray(logit_bias, jnp.float32), 0.0)
    rows_and_columns = negatives_of(
        SumSoftplus, Side(image, example, offset), Side(text, example), form=form, axis_name=axis_name, chunk=chunk
    )
    positive = (image * text).sum(-1) + offset
    values = _sigmoid_loss(positive, *rows_and_columns)
    return _matched(values, positive, rows_and_columns, logit_scale, weights, reduce, accuracy, axis_name)


def _examples(weights: jax.Array | None, n: int, axis_name: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the weights [n], and the numbers of the examples in the global batch, int32 [n]; -1: weight 0."""
    weights = weights_of(weights, n)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * n
    return weights, jnp.where(weights > 0, first + jnp.arange(n, dtype=jnp.int32), -1)


def _present(z: jax.Array, example: jax.Array) -> jax.Array:
    """Vectors in float32; zeros for padding, which may hold NaN."""
    return jnp.where((example >= 0)[:, None], z.astype(jnp.float32), 0)


def _unit(z: jax.Array, example: jax.Array) -> jax.Array:
    """Vectors of length 1; zeros for padding."""
    return l2_normalize(_present(z, example))


def _two_views(z1, z2, temperature, weights, form, axis_name, chunk):
    """Returns weights, both views of length 1, 1 / t, and the negatives of each view: both views of other examples."""
    weights, example = _examples(weights, z1.shape[0], axis_name)
    first, second = _unit(z1, example), _unit(z2, example)
    scale = 1 / jnp.asarray(temperature, jnp.float32)
    # Both factors of a logit get the root of the scale, so that the matrix stays symmetric. The views of an example
    # are neighbours, so that a split over devices stays as it is.
    views_2NxD = jnp.sqrt(scale) * jnp.stack([first, second], axis=1).reshape(-1, first.shape[-1])
    found, _ = negatives_of(
        LogSumExp, Side(views_2NxD, jnp.repeat(example, 2)), None, form=form, axis_name=axis_name, chunk=chunk
    )
    return weights, first, second, scale, [Negatives(found.value[v::2], found.largest[v::2]) for v in (0, 1)]


def _one_direction(query, keys, shared, temperature, normalize, weights, form, axis_name, chunk):
    """Returns weights, the logits of the positives [N], the negatives of each query, and 1 / t."""
    weights, example = _examples(weights, query.shape[0], axis_name)
    prepared = _unit if normalize else _present
    scale = 1 / jnp.asarray(temperature, jnp.float32)
    query, keys = scale * prepared(query, example), prepared(keys, example)
    columns = Side(keys, example)
    if shared is not None:  # numbers that no example of the batch has
        numbers = _SHARED + jnp.arange(shared.shape[0], dtype=jnp.int32)
        columns = Side(prepared(shared, numbers), numbers)
    rows, _ = negatives_of(LogSumExp, Side(query, example), columns, form=form, axis_name=axis_name, chunk=chunk)
    return weights, (query * keys).sum(-1), rows, scale


_SHARED = 1 << 30


def _above(found: Negatives) -> jax.Array:
    """log sum exp over the negatives; 0 for an anchor that has none."""
    return jnp.where(found.value > NEG_INF / 2, found.value, 0.0)


def _relative(logits: jax.Array, weights: jax.Array, axis_name: Any) -> jax.Array:
    """exp(logit) divided by its weighted mean over the examples."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.where(weights > 0, logits, NEG_INF)))
    largest = largest if axis_name is None else jax.lax.pmax(largest, axis_name)
    share = jnp.where(weights > 0, jnp.exp(logits - largest), 0.0)
    sums = (weights * share).sum(), weights.sum()
    summed, total = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    return share * jnp.where(total > 0, total, 1.0) / jnp.where(total > 0, summed, 1.0)


def _softmax_loss(positive: jax.Array, first: Any, second: Any) -> jax.Array:
    """-log of the softmax of the positive among itself and the negatives: log(1 + exp(log sum exp - positive))."""
    return (jax.nn.softplus(first.value - positive) + jax.nn.softplus(second.value - positive)) / 2


def _sigmoid_loss(positive: jax.Array, first: Any, second: Any) -> jax.Array:
    return jax.nn.softplus(-positive) + (first.value + second.value) / 2


def _matched(values, positive, found, scale, weights, reduce, accuracy, axis_name):
    """Reduces the values [n].

    Args:
        values: the loss of each example.
        positive: logit of the positive, [n].
        found: the negatives of each anchor of an example.
        scale: factor of cosines in logits.
        weights, reduce, accuracy, axis_name: see the module.
    """
    reduced = weighted_mean(values, weights, reduce, axis_name)
    if not accuracy or reduce:
        return reduced
    correct = sum(positive - n.largest > TIE * scale for n in found) / len(found)
    return *reduced, jax.lax.stop_gradient(jnp.where(weights > 0, correct, 0.0))
