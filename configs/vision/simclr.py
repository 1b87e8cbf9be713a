"""SimCLR (Chen et al. 2020): two views of an image find each other in the batch.

A vision transformer of 0.8M parameters on CIFAR-10 or MNIST, crops of 16 pixels so that a step is cheap; features are
read at full size.

    ssljax train --config configs/vision/simclr.py --workdir runs/simclr
    ssljax train --config configs/vision/simclr.py:data=mnist --workdir runs/simclr-mnist

A few minutes on two CPU cores; docs/results.md has the numbers. Ablate with one key, for example
`--config.objective.augment.augment.jitter=0` or `--config.objective.temperature=0.5`.
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
            ),
            objective=dict(
                name="simclr",
                temperature=0.2,
                projector=dict(hidden=512, output=128),
                augment=dict(name="two_views", size=16, crop_scale=(0.2, 1.0), augment=_images.AUGMENT[a["data"]]),
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=256,
            steps=800,
        )
    )
