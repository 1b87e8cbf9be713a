"""DINO (Caron et al. 2021): a student matches its own moving average across large and small crops.

    ssljax train --config configs/vision/dino.py --workdir runs/dino
    ssljax train --config configs/vision/dino.py:data=mnist --workdir runs/dino-mnist

A few minutes on two CPU cores; docs/results.md has the numbers. `--config.objective.centering=none` shows the collapse.
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
                name="dino",
                head=dict(hidden=512, bottleneck=128, prototypes=1024),
                momentum=0.99,  # a short run: the teacher must forget the initialisation
                augment=dict(
                    name="multi_crop",
                    size=16,
                    local_crops=2,
                    local_size=8,
                    global_scale=(0.4, 1.0),
                    local_scale=(0.1, 0.4),
                    augment=_images.AUGMENT[a["data"]],
                    second=None,  # all crops by the recipe of `augment`
                    local=None,
                ),
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(
                name="adamw", learning_rate=1e-3, weight_decay=0.05, clip_norm=3.0, freeze={"last_layer": "5%"}
            ),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=256,
            steps=800,
        )
    )
