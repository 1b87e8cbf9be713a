"""LeJEPA (Balestriero & LeCun 2025): views agree, and embeddings follow a standard normal distribution.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/lejepa.py --workdir runs/lejepa
    ssljax train --config configs/vision/lejepa.py:data=mnist --workdir runs/lejepa-mnist
    ssljax train --config configs/vision/lejepa.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 5 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.929 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.weight=0` leaves out SIGReg, without which nothing keeps embeddings apart.
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
                name="lejepa",
                projector=dict(hidden=512, output=64),
                directions=256,
                augment=dict(name="two_views", **_images.TWO_VIEWS[a["data"]], augment=_images.AUGMENT[a["data"]]),
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
