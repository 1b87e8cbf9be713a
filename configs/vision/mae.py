"""Masked autoencoder (He et al. 2022): a light decoder restores hidden patches.

Trains a vision transformer of 0.15M parameters on CIFAR-10 (three quarters of the patches hidden) or MNIST (60 %)
without labels.

    ssljax train --config configs/vision/mae.py --workdir runs/mae
    ssljax train --config configs/vision/mae.py:data=mnist --workdir runs/mae-mnist
    ssljax train --config configs/vision/mae.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 9 minutes on one CPU core.
Result: accuracy of a linear probe with 100 labels per class on held-out images: CIFAR-10 0.382 (raw pixels 0.329),
MNIST 0.918 (raw pixels 0.898); docs/results.md, section 1.
"""

import _images
import ml_collections

from ssljax.config import arguments

# Most patches of a digit are blank and cannot be normalised. With three quarters hidden, too little of a digit is left.
PHOTOS = dict(mask_ratio=0.75, augment=dict(name="single", crop_scale=(0.4, 1.0), augment=dict(flip=0.5)))
VARIANTS = {
    "cifar10": PHOTOS,
    "folder": PHOTOS,
    "mnist": dict(
        mask_ratio=0.6,
        normalize_targets=False,
        augment=dict(name="single", crop_scale=(0.8, 1.0), augment=dict(flip=0.0)),
    ),
}


def get_config(arg=""):
    a = arguments(arg, data=_images.DATA)
    return ml_collections.ConfigDict(
        dict(
            model=_images.vit(patch_size=8 if a["data"] == "folder" else 4),
            objective=dict(
                name="mae",
                decoder=dict(width=64, depth=1, heads=2),
                **VARIANTS[a["data"]],
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"], feature=_images.VIT_FEATURE[a["data"]]),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=256,
            steps=450,
        )
    )
