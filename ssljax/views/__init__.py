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
from ssljax.views.documents import (
    delete_tokens,
    gap_sentences,
    infill_spans,
    infilled_length,
    permute_sentences,
    rotate_text,
    rouge_scores,
    sentence_numbers,
)
from ssljax.views.geometry import random_cutout, random_flip, random_resized_crop, random_rotate90, resample
from ssljax.views.graph_views import GraphViews, drop_nodes, mask_attributes, perturb_edges, subgraph
from ssljax.views.hog import hog
from ssljax.views.keys import example_keys, fold_in
from ssljax.views.lab import ab_bins, annealed_mean, lab_to_rgb, nearest_bins, rebalancing, rgb_to_lab
from ssljax.views.maskings import BlockMasking, Masking, Partition, PartMasking, RandomMasking
from ssljax.views.masks import (
    MaskedTokens,
    choose_spans,
    diffusion_mask,
    mlm_budget,
    mlm_corrupt,
    random_block_mask,
    random_blocks,
    random_masks,
    random_patch_mask,
    random_subset,
    visible_patches,
)
from ssljax.views.mixing import cutmix, mixup
from ssljax.views.pixels import center_crop, centered, normalize, resize, to_float, unnormalize
from ssljax.views.puzzles import drop_colours, far_permutations, jigsaw, random_neighbours, rotations
from ssljax.views.spans import (
    Denoiser,
    Denoising,
    denoising_lengths,
    mixed_span_corrupt,
    prefix_lengths,
    span_corrupt,
    span_counts,
)
from ssljax.views.texts import choose_words, sentence_pairs, span_boundary, word_numbers

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

MASKINGS = Registry(
    "masking",
    {
        "random": "ssljax.views.maskings:RandomMasking",
        "blocks": "ssljax.views.maskings:BlockMasking",
        "parts": "ssljax.views.maskings:PartMasking",
    },
    has=("__dataclass_fields__", "__call__"),
)

__all__ = [
    "MASKINGS",
    "REGISTRY",
    "Augment",
    "BlockMasking",
    "ContrastiveAugment",
    "Denoiser",
    "Denoising",
    "GraphViews",
    "MaskedTokens",
    "Masking",
    "MultiCrop",
    "PartMasking",
    "Partition",
    "RandomMasking",
    "Single",
    "TwoViews",
    "ab_bins",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "annealed_mean",
    "center_crop",
    "centered",
    "choose_spans",
    "choose_words",
    "cutmix",
    "delete_tokens",
    "denoising_lengths",
    "diffusion_mask",
    "drop_colours",
    "drop_nodes",
    "example_keys",
    "far_permutations",
    "fold_in",
    "gap_sentences",
    "gaussian_blur",
    "hog",
    "infill_spans",
    "infilled_length",
    "jigsaw",
    "lab_to_rgb",
    "mask_attributes",
    "mixed_span_corrupt",
    "mixup",
    "mlm_budget",
    "mlm_corrupt",
    "nearest_bins",
    "normalize",
    "normalize_patches",
    "patchify",
    "permute_sentences",
    "perturb_edges",
    "prefix_lengths",
    "random_block_mask",
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
    "rebalancing",
    "resample",
    "resize",
    "rgb_to_lab",
    "rotate_text",
    "rotations",
    "rouge_scores",
    "sentence_numbers",
    "sentence_pairs",
    "span_boundary",
    "span_corrupt",
    "span_counts",
    "subgraph",
    "to_float",
    "unnormalize",
    "unnormalize_patches",
    "unpatchify",
    "visible_patches",
    "word_numbers",
]
