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
            model=_images.vit(_images.PATCH_SIZE[a["data"]]),
            objective=dict(
                name="dino",
                head=dict(hidden=512, bottleneck=128, prototypes=256),
                teacher_temperature=0.04,  # the paper's first; a higher one flattens the teacher of a short run
                momentum=0.99,  # a short run: the teacher must forget the initialisation
                augment=dict(
                    name="multi_crop",
                    local_crops=2,
                    **_images.MULTI_CROP[a["data"]],
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
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=500),
            batch_size=64,
            steps=1500,
        )
    )
