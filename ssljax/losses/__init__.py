"""Losses: pure functions of arrays, without modules, meshes or configuration.

Every per-example loss has two options. `weights` [N]: weight of each example, 0 = padding (neither anchor nor
negative); None: all 1. `reduce`: True returns the weighted mean (0 if all weights are 0), False returns (values [N],
weights [N]). Sums, softmaxes, norms and similarities are computed in float32, with matrix products of the highest
precision. Values and gradients are finite for one example, equal rows, zeros, and weights of 0 too.
"""

from ssljax.losses.classification import TokenScores, cross_entropy, linear_cross_entropy, linear_nll
from ssljax.losses.contrastive import clip_loss, nt_xent, siglip_loss
from ssljax.losses.cross_view import dino_loss, sinkhorn, swav_loss
from ssljax.losses.health import alignment, effective_rank, entropy, feature_std, uniformity
from ssljax.losses.reconstruction import masked_mse

__all__ = [
    "TokenScores",
    "alignment",
    "clip_loss",
    "cross_entropy",
    "dino_loss",
    "effective_rank",
    "entropy",
    "feature_std",
    "linear_cross_entropy",
    "linear_nll",
    "masked_mse",
    "nt_xent",
    "siglip_loss",
    "sinkhorn",
    "swav_loss",
    "uniformity",
]
