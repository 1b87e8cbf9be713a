"""Supervised classification: a reference for the methods without labels.

Trains on all labels of CIFAR-10 (a vision transformer of 0.15M parameters) or MNIST (a ResNet of 0.31M parameters).

    ssljax train --config configs/vision/classification.py --workdir runs/classification
    ssljax train --config configs/vision/classification.py:data=mnist --workdir runs/classification-mnist
    ssljax train --config configs/vision/classification.py:data=folder --workdir runs/x --config.data.source=images:DIR

Time: 7 minutes on one CPU core.
Result: accuracy of a linear probe with 100 labels per class on held-out images: CIFAR-10 0.483 (raw pixels 0.329);
docs/results.md, section 1.
"""

import _images
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=_images.DATA)
    return ml_collections.ConfigDict(
        dict(
            model=_images.encoder(a["data"]),
            objective=dict(
                name="classification",
                label_smoothing=0.1,
                augment=dict(
                    name="single", crop_scale=(0.5, 1.0), augment=dict(flip=0.0 if a["data"] == "mnist" else 0.5)
                ),
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"]),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=128,
            steps=250 if a["data"] == "mnist" else 550,
        )
    )
