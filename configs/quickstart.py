"""SimCLR (Chen et al. 2020) on scikit-learn's handwritten digits: a tour without files or labels.

Trains a small vision transformer on 1,437 pictures of 8 x 8 pixels. Its features are then evaluated with few labels:
k-NN with one label per class, a linear probe with five, ridge regression with one, five and ten. Controls are the
untrained encoder and raw pixels. With all 1,437 labels, k-NN on raw pixels is not beaten (98.3 %).

    ssljax train --config configs/quickstart.py --workdir runs/quickstart

Time: 3 minutes on two CPU cores, report included.
Result: k-NN with one label per class is right for 70.6 % of held-out digits (untrained 25.1 %, raw pixels 65.5 %);
docs/results.md, section 3.
"""

import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(
                name="vit", preset=None, width=64, depth=3, heads=4, patch_size=2, pool="mean", positions="sincos"
            ),
            objective=dict(
                name="simclr",
                temperature=0.2,
                projector=dict(hidden=256, output=64),
                augment=dict(
                    name="two_views",
                    crop_scale=(0.6, 1.0),
                    augment=dict(
                        crop_ratio=(0.5, 2.0), flip=0.0, jitter=0.3, brightness=0.4, contrast=0.4, gray=0.0, blur=0.0
                    ),
                ),
            ),
            data=dict(source="builtin:digits"),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05),
            schedule=dict(name="cosine", warmup="5%"),
            evals=dict(
                knn=dict(labels_per_class=1, draws=20),
                linear=dict(labels_per_class=5, draws=10),
                few_shot=dict(draws=10),
            ),
            log=dict(every_steps=20),
            checkpoint=dict(every_steps=100),
            batch_size=256,
            steps=500,
        )
    )
