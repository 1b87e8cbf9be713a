"""BYOL (Grill et al. 2020): a student predicts the projection of another view by its moving average.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/byol.py --workdir runs/byol
    ssljax train --config configs/vision/byol.py:data=mnist --workdir runs/byol-mnist
    ssljax train --config configs/vision/byol.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.925 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.predictor=None` leaves out the predictor, without which runs of the paper collapse.
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
                name="byol",
                projector=dict(hidden=512, output=128),
                predictor=dict(hidden=256),
                teacher=dict(momentum=0.98),
                augment=dict(
                    name="two_views", **_images.TWO_VIEWS[a["data"]], augment=_images.AUGMENT[a["data"]], second=None
                ),
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"]),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=256,
            steps=120 if a["data"] == "mnist" else 500,
        )
    )
