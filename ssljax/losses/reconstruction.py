"""Losses between masked inputs and their reconstruction."""

import jax
import jax.numpy as jnp

from ssljax.losses.reduction import weighted_mean, weights_of


def masked_mse(
    pred: jax.Array, target: jax.Array, mask: jax.Array, *, weights: jax.Array | None = None, reduce: bool = True
):
    """Mean squared error of the masked patches (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners").

    The value of an example is the mean, over its masked patches, of the mean squared error of a patch.

    Args:
        pred, target: [N, P, D].
        mask: [N, P], True where the patch was hidden. An example without hidden patches gets weight 0.
        weights: [N], 0 = padding.
        reduce: False returns (values [N], weights [N]).
    """
    mask = mask.astype(bool)
    hidden = mask.sum(-1)
    error_NxP = jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)).mean(-1)
    values = jnp.where(mask, error_NxP, 0.0).sum(-1) / jnp.maximum(hidden, 1)
    return weighted_mean(values, jnp.where(hidden > 0, weights_of(weights, pred.shape[0]), 0.0), reduce)
