"""SwAV (Caron et al. 2020): one crop's balanced cluster assignment is predicted from the others.

    ssljax train --config configs/vision/swav.py --workdir runs/swav
    ssljax train --config configs/vision/swav.py:data=mnist --workdir runs/swav-mnist

A few minutes on one CPU core; docs/results.md has the numbers. The collapse is shown by
`--config.objective.sinkhorn_iterations=0`.
"""

import _images
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=("cifar10", "mnist"))
    return ml_collections.ConfigDict(
        dict(
            model=_images.vit(_images.PATCH_SIZE[a["data"]]),
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
                name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0, freeze={"^prototypes": "2%"}
            ),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=128,
            steps=650,
        )
    )
