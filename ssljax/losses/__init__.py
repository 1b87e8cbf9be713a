"""Losses: pure functions of arrays, without modules, meshes or configuration.

Every per-example loss has two options. `weights` [N]: weight of each example, 0 = padding (neither anchor nor
negative); None: all 1. `reduce`: True returns the weighted mean (0 if all weights are 0), False returns (values [N],
weights [N]). Sums, softmaxes, norms and similarities are computed in float32, with matrix products of the highest
precision. Values and gradients are finite for one example, equal rows, zeros, and weights of 0 too.
"""

from ssljax.base.patches import patchify, unpatchify
from ssljax.losses.classification import (
    TokenScores,
    binary_cross_entropy,
    cross_entropy,
    linear_cross_entropy,
    linear_nll,
)
from ssljax.losses.contrastive import clip, decoupled_contrastive, graph_cl, info_nce, moco_v3, nt_xent, siglip, simcse
from ssljax.losses.cross_view import assignments, byol, dino, ibot, simsiam, sinkhorn, swapped, swav
from ssljax.losses.health import alignment, effective_rank, entropy, feature_std, uniformity
from ssljax.losses.metric import contrastive_pairs, n_pair, nce, sup_con, triplet
from ssljax.losses.reconstruction import gaussian_nll, huber, mae, masked_patches, mse, smooth_l1, vae_kl
from ssljax.losses.redundancy import barlow_twins, hsic, koleo, sigreg, vicreg
from ssljax.losses.soft_targets import deep_cluster, distillation, electra, fixmatch, mean_teacher

__all__ = [
    "TokenScores",
    "alignment",
    "assignments",
    "barlow_twins",
    "binary_cross_entropy",
    "byol",
    "clip",
    "contrastive_pairs",
    "cross_entropy",
    "decoupled_contrastive",
    "deep_cluster",
    "dino",
    "distillation",
    "effective_rank",
    "electra",
    "entropy",
    "feature_std",
    "fixmatch",
    "gaussian_nll",
    "graph_cl",
    "hsic",
    "huber",
    "ibot",
    "info_nce",
    "koleo",
    "linear_cross_entropy",
    "linear_nll",
    "mae",
    "masked_patches",
    "mean_teacher",
    "moco_v3",
    "mse",
    "n_pair",
    "nce",
    "nt_xent",
    "patchify",
    "siglip",
    "sigreg",
    "simcse",
    "simsiam",
    "sinkhorn",
    "smooth_l1",
    "sup_con",
    "swapped",
    "swav",
    "triplet",
    "uniformity",
    "unpatchify",
    "vae_kl",
    "vicreg",
]
