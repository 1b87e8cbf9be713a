"""Losses between predictions and targets of the same shape: of masked patches, and of numbers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax.base.errors import UserError
from ssljax.base.patches import normalize_patches, patchify
from ssljax.losses.reduction import present, weighted_mean, weights_of


def masked_patches(
    images: jax.Array,
    pred: jax.Array,
    mask: jax.Array,
    patch: int,
    normalize: bool = True,
    *,
    weights: jax.Array | None = None,
    reduce: bool = True,
):
    """Mean squared error of the masked patches (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners",
    section 3).

    The value of an image is the mean, over its masked patches, of the mean squared error of a patch.

    Args:
        images: [N, H, W, C].
        pred: [N, P, patch * patch * C], values ordered as by `patchify`: row, column, channel.
        mask: [N, P], True where the patch was hidden. An image without hidden patches gets weight 0.
        patch: side of a patch.
        normalize: True: the target of each patch has mean 0 and unbiased variance 1 (plus 1e-6).
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).

    Raises:
        UserError: the images are not divisible into patches.
    """
    weights = weights_of(weights, pred.shape[0])
    images, pred = present(weights, images.astype(jnp.float32), pred.astype(jnp.float32))
    target = patchify(images, patch)
    target = normalize_patches(target) if normalize else target
    mask = mask.astype(bool)
    hidden = mask.sum(-1)
    error_NxP = jnp.square(pred - target).mean(-1)
    values = jnp.where(mask, error_NxP, 0.0).sum(-1) / jnp.maximum(hidden, 1)
    return weighted_mean(values, jnp.where(hidden > 0, weights, 0.0), reduce)


def mse(pred: jax.Array, target: jax.Array, *, weights: jax.Array | None = None, reduce: bool = True):
    """Squared error, mean over the numbers of an example.

    Args:
        pred, target: [N, ...], of one shape.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).

    Raises:
        UserError: the shapes differ.
    """
    return _elementwise(jnp.square, pred, target, weights, reduce)


def mae(pred: jax.Array, target: jax.Array, *, weights: jax.Array | None = None, reduce: bool = True):
    """Absolute error, mean over the numbers of an example; arguments of `mse`."""
    return _elementwise(jnp.abs, pred, target, weights, reduce)


def huber(
    pred: jax.Array, target: jax.Array, delta: float = 1.0, *, weights: jax.Array | None = None, reduce: bool = True
):
    """Huber loss (Huber 1964), mean over the numbers of an example: e^2 / 2 up to |e| = delta, then delta (|e| - delta
    / 2).

    Args:
        pred, target, weights, reduce: see `mse`.
        delta: error at which the loss becomes linear, > 0.
    """

    def value(error: jax.Array) -> jax.Array:
        size = jnp.abs(error)
        near = jnp.minimum(size, delta)
        return near * (size - near / 2)

    return _elementwise(value, pred, target, weights, reduce)


def smooth_l1(
    pred: jax.Array, target: jax.Array, beta: float = 1.0, *, weights: jax.Array | None = None, reduce: bool = True
):
    """Huber loss over beta (Girshick 2015, "Fast R-CNN", eq. 3, has beta = 1): e^2 / (2 beta), then |e| - beta / 2.

    Args:
        pred, target, weights, reduce: see `mse`.
        beta: error at which the loss becomes linear; 0: the absolute error.
    """
    if beta == 0:
        return mae(pred, target, weights=weights, reduce=reduce)
    found = huber(pred, target, beta, weights=weights, reduce=reduce)
    return found / beta if reduce else (found[0] / beta, found[1])


def _elementwise(
    function: Callable[[jax.Array], jax.Array],
    pred: jax.Array,
    target: jax.Array,
    weights: jax.Array | None,
    reduce: bool,
):
    if pred.shape != target.shape:
        raise UserError(f"target: got shape {target.shape}, must be that of the predictions, {pred.shape}")
    weights = weights_of(weights, pred.shape[0])
    (error,) = present(weights, pred.astype(jnp.float32) - target.astype(jnp.float32))
    return weighted_mean(function(error).reshape(len(error), -1).mean(-1), weights, reduce)


def vae_kl(mean: jax.Array, logvar: jax.Array, *, weights: jax.Array | None = None, reduce: bool = True):
    """KL divergence from N(0, 1) of a diagonal normal distribution (Kingma & Welling 2014, "Auto-Encoding Variational
    Bayes", appendix B), in nats, summed over dimensions.

    Args:
        mean, logvar: [N, D], mean and logarithm of the variance.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, mean.shape[0])
    mean, logvar = present(weights, mean.astype(jnp.float32), logvar.astype(jnp.float32))
    values = (jnp.square(mean) + jnp.expm1(logvar) - logvar).sum(-1) / 2
    return weighted_mean(values, weights, reduce)


def gaussian_nll(
    mean: jax.Array, logvar: jax.Array, target: jax.Array, *, weights: jax.Array | None = None, reduce: bool = True
):
    """Negative log likelihood of a normal distribution, (log s^2 + (y - m)^2 / s^2) / 2, without log(2 pi) / 2, in
    nats.

    Summed over dimensions. With a fixed variance of 1 it is half the squared error.

    Args:
        mean, logvar, target: [N, D].
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    weights = weights_of(weights, mean.shape[0])
    mean, logvar, target = present(weights, *(x.astype(jnp.float32) for x in (mean, logvar, target)))
    values = (logvar + jnp.square((target - mean) * jnp.exp(-logvar / 2))).sum(-1) / 2
    return weighted_mean(values, weights, reduce)
