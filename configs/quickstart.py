"""SimCLR on scikit-learn's handwritten digits: the two-minute tour.

Trains a small vision transformer without labels on 1,437 pictures of 8 x 8 pixels that ship with scikit-learn, then
asks how much a handful of labels can do with its features, beside an untrained encoder and raw pixels.

    ssljax train --config configs/quickstart.py --workdir runs/quickstart
"""

import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="vit", size=None, width=96, depth=4, heads=4, patch_size=2, pool="mean"),
            objective=dict(
                name="simclr",
                temperature=0.2,
                projector=dict(hidden=256, output=64),
                augment=dict(
                    name="two_views",
                    crop_scale=(0.4, 1.0),
                    augment=dict(flip=0.0, jitter=0.5, brightness=0.4, contrast=0.4, gray=0.0, blur=0.3),
                ),
            ),
            data=dict(source="builtin:digits"),
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.05),
            schedule=dict(name="cosine", warmup="5%"),
            evals=dict(
                knn=dict(),
                linear=dict(),
                few_shot=dict(),
            ),
            log=dict(every_steps=25),
            batch_size=256,
            steps=600,
        )
    )
