"""SimCLR (Chen et al. 2020): two views of an image are matched among all images of the batch.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/simclr.py --workdir runs/simclr
    ssljax train --config configs/vision/simclr.py:data=mnist --workdir runs/simclr-mnist
    ssljax train --config configs/vision/simclr.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 8 minutes on one CPU core.
Result: accuracy of a linear probe with 100 labels per class on held-out images: CIFAR-10 0.409 (raw pixels 0.329),
MNIST 0.948 (raw pixels 0.898); docs/results.md, section 1.

An ablation changes one key, for example `--config.objective.augment.augment.jitter=0` or
`--config.objective.temperature=0.5`.
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
                name="simclr",
                temperature=0.2,
                projector=dict(hidden=512, output=128),
                augment=dict(name="two_views", **_images.TWO_VIEWS[a["data"]], augment=_images.AUGMENT[a["data"]]),
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"]),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=256,
            steps=250 if a["data"] == "mnist" else 500,
        )
    )
