"""SwAV (Caron et al. 2020): the balanced cluster assignment of one crop is predicted from the others.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/swav.py --workdir runs/swav
    ssljax train --config configs/vision/swav.py:data=mnist --workdir runs/swav-mnist
    ssljax train --config configs/vision/swav.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 7 minutes on one CPU core.
Result: accuracy of a linear probe with 100 labels per class on held-out images: CIFAR-10 0.369 (raw pixels 0.329),
MNIST 0.945 (raw pixels 0.898); docs/results.md, section 1.

`--config.objective.sinkhorn_iterations=0` shows the collapse.
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
                name="swav",
                prototypes=128,
                projector=dict(hidden=512, output=128),
                augment=dict(
                    name="multi_crop",
                    local_crops=2,
                    **_images.MULTI_CROP[a["data"]],
                    augment=_images.AUGMENT[a["data"]],
                ),
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(
                name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0, freeze=[("^prototypes", "2%")]
            ),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"]),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=128,
            steps=250 if a["data"] == "mnist" else 650,
        )
    )
