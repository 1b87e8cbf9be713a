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
from ssljax.views.contexts import Words, context_at, keep_probability, noise_tokens, offsets, subsampled_words
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
from ssljax.views.keys import example_keys, fold_in, text_keys
from ssljax.views.lab import ab_bins, annealed_mean, lab_to_rgb, nearest_bins, rebalancing, rgb_to_lab
from ssljax.views.maskings import BlockMasking, Masking, Partition, PartMasking, RandomMasking
from ssljax.views.masks import (
    MaskedTokens,
    choose_spans,
    diffusion_mask,
    factorization_order,
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
from ssljax.views.sound import (
    AudioViews,
    LogMel,
    mel_filters,
    random_gain,
    random_hiss,
    random_spectrogram_masks,
    random_time_crop,
)
from ssljax.views.spans import (
    Denoiser,
    Denoising,
    denoising_lengths,
    joined_texts,
    mixed_span_corrupt,
    prefix_lengths,
    prefix_sizes,
    span_corrupt,
    span_counts,
    split_texts,
)
from ssljax.views.texts import choose_words, sentence_pairs, span_boundary, word_numbers

REGISTRY = Registry(
    "views",
    {
        "single": "ssljax.views.augment:Single",
        "two_views": "ssljax.views.augment:TwoViews",
        "multi_crop": "ssljax.views.augment:MultiCrop",
        "graph_views": "ssljax.views.graph_views:GraphViews",
        "audio_views": "ssljax.views.sound:AudioViews",
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
    "AudioViews",
    "Augment",
    "BlockMasking",
    "ContrastiveAugment",
    "Denoiser",
    "Denoising",
    "GraphViews",
    "LogMel",
    "MaskedTokens",
    "Masking",
    "MultiCrop",
    "PartMasking",
    "Partition",
    "RandomMasking",
    "Single",
    "TwoViews",
    "Words",
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
    "context_at",
    "cutmix",
    "delete_tokens",
    "denoising_lengths",
    "diffusion_mask",
    "drop_colours",
    "drop_nodes",
    "example_keys",
    "factorization_order",
    "far_permutations",
    "fold_in",
    "gap_sentences",
    "gaussian_blur",
    "hog",
    "infill_spans",
    "infilled_length",
    "jigsaw",
    "joined_texts",
    "keep_probability",
    "lab_to_rgb",
    "mask_attributes",
    "mel_filters",
    "mixed_span_corrupt",
    "mixup",
    "mlm_budget",
    "mlm_corrupt",
    "nearest_bins",
    "noise_tokens",
    "normalize",
    "normalize_patches",
    "offsets",
    "patchify",
    "permute_sentences",
    "perturb_edges",
    "prefix_lengths",
    "prefix_sizes",
    "random_block_mask",
    "random_blocks",
    "random_color_jitter",
    "random_cutout",
    "random_flip",
    "random_gain",
    "random_gaussian_blur",
    "random_grayscale",
    "random_hiss",
    "random_masks",
    "random_neighbours",
    "random_noise",
    "random_patch_mask",
    "random_resized_crop",
    "random_rotate90",
    "random_solarize",
    "random_spectrogram_masks",
    "random_subset",
    "random_time_crop",
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
    "split_texts",
    "subgraph",
    "subsampled_words",
    "text_keys",
    "to_float",
    "unnormalize",
    "unnormalize_patches",
    "unpatchify",
    "visible_patches",
    "word_numbers",
]
