"""Masked autoencoder (He et al. 2022): a light decoder restores the three quarters of the patches that were hidden.

    ssljax train --config configs/vision/mae.py --workdir runs/mae
    ssljax train --config configs/vision/mae.py:data=mnist --workdir runs/mae-mnist

A few minutes on two CPU cores; docs/results.md has the numbers.
"""

import _images
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data="cifar10")
    return ml_collections.ConfigDict(
        dict(
            model=dict(
                name="vit",
                size=None,
                width=128,
                depth=4,
                heads=4,
                patch_size=_images.PATCH_SIZE[a["data"]],
                pool="mean",
                positions="sincos",
            ),
            objective=dict(
                name="mae",
                mask_ratio=0.75,
                decoder=dict(width=64, depth=1, heads=2),
                augment=dict(
                    name="single", crop_scale=(0.4, 1.0), augment=dict(flip=0.5 if a["data"] == "cifar10" else 0.0)
                ),
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=1.5e-3, weight_decay=0.05, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=256,
            steps=1500,
        )
    )
