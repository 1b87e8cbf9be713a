"""I-JEPA (Assran et al. 2023): representations of hidden blocks are predicted from some patches of an image.

Trains a vision transformer of 0.15M parameters on CIFAR-10 or MNIST without labels.

    ssljax train --config configs/vision/i_jepa.py --workdir runs/i_jepa
    ssljax train --config configs/vision/i_jepa.py:data=mnist --workdir runs/i_jepa-mnist
    ssljax train --config configs/vision/i_jepa.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 5 minutes on one CPU core.
Result: accuracy of a linear probe with 100 labels per class on held-out images of CIFAR-10: 0.351 (raw
pixels 0.339, untrained encoder 0.327); docs/results.md, section 1.
"""

import _images
import ml_collections

from ssljax.config import arguments

CROP = {"cifar10": (0.4, 1.0), "mnist": (0.8, 1.0), "folder": (0.3, 1.0)}


def get_config(arg=""):
    a = arguments(arg, data=_images.DATA)
    return ml_collections.ConfigDict(
        dict(
            model=_images.vit(patch_size=8 if a["data"] == "folder" else 4),
            objective=dict(
                name="i_jepa",
                predictor=dict(width=64, depth=1, heads=2),
                teacher=dict(momentum=0.98),
                augment=dict(name="single", crop_scale=CROP[a["data"]]),
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"], feature=_images.VIT_FEATURE[a["data"]]),
            log=dict(every_steps=50),
            checkpoint=dict(every_steps=200),
            batch_size=64,
            steps=800,
        )
    )
