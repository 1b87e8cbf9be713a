"""Losses that identify the partner of an example among all other examples of the batch.

Each has three forms with equal values and gradients, chosen by `form`: "dense", "chunked" and "ring"
(`ssljax.losses.pairs`). The first stores a matrix of all pairs of the batch; the others do not.

Common arguments:

- weights: [N]; an example of weight 0 is neither anchor nor negative. Other weights only weight the anchors.
- reduce: False returns (values [N], weights [N]).
- accuracy: True, with `reduce=False`, returns (values [N], weights [N], correct [N]). `correct` is the share of the two
  anchors of an example to which their partner is more similar than all other examples, without gradient. A negative
  whose cosine is equal up to 1e-6 counts against the anchor.
- form, chunk: form of the computation, and the largest number of rows and columns of a block of logits.
- axis_name: for a batch that is split over this mesh axis (or tuple of mesh axes), in the order of its devices: arrays
  of examples are then those of this device, and the loss is called inside a `shard_map`. The reduced loss is the mean
  over the global batch, equal on all devices. To differentiate, take the gradient of the whole `shard_map`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ssljax.losses.pairs import CHUNK, Form, LogSumExp, Negatives, Side, SumSoftplus, negatives
from ssljax.losses.reduction import l2_normalize, weighted_mean, weights_of

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
    weights, example = _examples(weights, z1.shape[0], axis_name)
    first, second = _unit(z1, example), _unit(z2, example)
    scale = 1 / jnp.asarray(temperature, jnp.float32)
    # Both factors of a logit get the root of the scale, so that the matrix stays symmetric. The views of an example
    # are neighbours, so that a split over devices stays as it is.
    views_2NxD = jnp.sqrt(scale) * jnp.stack([first, second], axis=1).reshape(-1, first.shape[-1])
    found, _ = negatives(
        LogSumExp, Side(views_2NxD, jnp.repeat(example, 2)), None, form=form, axis_name=axis_name, chunk=chunk
    )
    views = [Negatives(found.value[v::2], found.largest[v::2]) for v in (0, 1)]
    return _matched(_softmax_loss, scale * (first * second).sum(-1), views, scale, weights, reduce, accuracy, axis_name)


def clip_loss(
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
        image, text: [N, D]; L2-normalised inside, in float32.
        logit_scale: factor of the cosines: 1 / temperature, the exponential of CLIP's parameter.
        weights, reduce, accuracy, form, axis_name, chunk: see the module.
    """
    weights, example = _examples(weights, image.shape[0], axis_name)
    image, text = logit_scale * _unit(image, example), _unit(text, example)
    rows_and_columns = negatives(
        LogSumExp, Side(image, example), Side(text, example), form=form, axis_name=axis_name, chunk=chunk
    )
    positive = (image * text).sum(-1)
    return _matched(_softmax_loss, positive, rows_and_columns, logit_scale, weights, reduce, accuracy, axis_name)


def siglip_loss(
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
        image, text: [N, D]; L2-normalised inside, in float32.
        logit_scale: factor t of the cosines, the exponential of a learned parameter.
        logit_bias: bias b of the logits, learned; the paper begins with -10.
        weights, reduce, accuracy, form, axis_name, chunk: see the module.
    """
    weights, example = _examples(weights, image.shape[0], axis_name)
    image, text = logit_scale * _unit(image, example), _unit(text, example)
    offset = jnp.where(example >= 0, jnp.asarray(logit_bias, jnp.float32), 0.0)
    rows_and_columns = negatives(
        SumSoftplus, Side(image, example, offset), Side(text, example), form=form, axis_name=axis_name, chunk=chunk
    )
    positive = (image * text).sum(-1) + offset
    return _matched(_sigmoid_loss, positive, rows_and_columns, logit_scale, weights, reduce, accuracy, axis_name)


def _examples(weights: jax.Array | None, n: int, axis_name: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the weights [n], and the numbers of the examples in the global batch, int32 [n]; -1: weight 0."""
    weights = weights_of(weights, n)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * n
    return weights, jnp.where(weights > 0, first + jnp.arange(n, dtype=jnp.int32), -1)


def _unit(z: jax.Array, example: jax.Array) -> jax.Array:
    """Vectors of length 1; zeros for padding, which may hold NaN."""
    return l2_normalize(jnp.where((example >= 0)[:, None], z, 0))


def _softmax_loss(positive: jax.Array, first: Negatives, second: Negatives) -> jax.Array:
    """-log of the softmax of the positive among itself and the negatives: log(1 + exp(log sum exp - positive))."""
    return (jax.nn.softplus(first.value - positive) + jax.nn.softplus(second.value - positive)) / 2


def _sigmoid_loss(positive: jax.Array, first: Negatives, second: Negatives) -> jax.Array:
    return jax.nn.softplus(-positive) + (first.value + second.value) / 2


def _matched(loss, positive, negatives, scale, weights, reduce, accuracy, axis_name):
    """Joins the logit of the positive [n] with the negatives of its two anchors; `scale` is the factor of cosines."""
    found = weighted_mean(loss(positive, *negatives), weights, reduce, axis_name)
    if not accuracy or reduce:
        return found
    correct = sum(positive - n.largest > TIE * scale for n in negatives) / 2
    return *found, jax.lax.stop_gradient(jnp.where(weights > 0, correct, 0.0))
