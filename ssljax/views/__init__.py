"""Views: random augmentation, masking and corruption of a batch on device, as pure functions (keys, arrays) -> arrays.

The functions take keys [B], one per example (`example_keys(key, B)`). Row i of a result depends only on keys[i] and on
row i of the input (mixtures: also on row i - 1), so a batch may be cut into slices before its views are made.
"""

from ssljax.base.patches import normalize_patches, patchify, unnormalize_patches, unpatchify
from ssljax.base.registry import Registry
from ssljax.views.augment import Augment, ContrastiveAugment, MultiCrop, Single, TwoViews
from ssljax.views.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    random_color_jitter,
    random_gaussian_blur,
    random_grayscale,
    random_noise,
    random_solarize,
)
from ssljax.views.geometry import random_cutout, random_flip, random_resized_crop, random_rotate90, resample
from ssljax.views.graph_views import GraphViews, drop_nodes, mask_attributes, perturb_edges, subgraph
from ssljax.views.hog import hog
from ssljax.views.keys import example_keys, fold_in
from ssljax.views.masks import (
    choose_spans,
    mlm_budget,
    mlm_corrupt,
    random_blocks,
    random_masks,
    random_patch_mask,
    random_subset,
    visible_patches,
)
from ssljax.views.mixing import cutmix, mixup
from ssljax.views.pixels import center_crop, centered, normalize, resize, to_float, unnormalize
from ssljax.views.puzzles import drop_colours, far_permutations, jigsaw, random_neighbours, rotations
from ssljax.views.spans import denoising_lengths, span_corrupt, span_counts

REGISTRY = Registry(
    "views",
    {
        "single": "ssljax.views.augment:Single",
        "two_views": "ssljax.views.augment:TwoViews",
        "multi_crop": "ssljax.views.augment:MultiCrop",
        "graph_views": "ssljax.views.graph_views:GraphViews",
    },
    has=("__dataclass_fields__", "__call__"),
)

__all__ = [
    "REGISTRY",
    "Augment",
    "ContrastiveAugment",
    "GraphViews",
    "MultiCrop",
    "Single",
    "TwoViews",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "center_crop",
    "centered",
    "choose_spans",
    "cutmix",
    "denoising_lengths",
    "drop_colours",
    "drop_nodes",
    "example_keys",
    "far_permutations",
    "fold_in",
    "gaussian_blur",
    "hog",
    "jigsaw",
    "mask_attributes",
    "mixup",
    "mlm_budget",
    "mlm_corrupt",
    "normalize",
    "normalize_patches",
    "patchify",
    "perturb_edges",
    "random_blocks",
    "random_color_jitter",
    "random_cutout",
    "random_flip",
    "random_gaussian_blur",
    "random_grayscale",
    "random_masks",
    "random_neighbours",
    "random_noise",
    "random_patch_mask",
    "random_resized_crop",
    "random_rotate90",
    "random_solarize",
    "random_subset",
    "resample",
    "resize",
    "rotations",
    "span_corrupt",
    "span_counts",
    "subgraph",
    "to_float",
    "unnormalize",
    "unnormalize_patches",
    "unpatchify",
    "visible_patches",
]
