"""Pseudo-label (Lee 2013): the most probable class of an unlabelled image is its label.

Trains a ResNet of 0.31M parameters on 100 labelled and all unlabelled digits of MNIST, or a vision transformer of 0.15M
parameters on 1,000 labelled and all unlabelled images of CIFAR-10.

    ssljax train --config configs/vision/pseudo_label.py --workdir runs/pseudo_label
    ssljax train --config configs/vision/pseudo_label.py:data=cifar10 --workdir runs/pseudo_label-cifar

Time: 4 minutes on one CPU core.
Result: not measured yet; docs/results.md, section 1.
"""

import _few_labels
import _images
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=("mnist", "cifar10"))["data"]
    return ml_collections.ConfigDict(
        dict(
            model=_images.encoder(data),
            objective=dict(name="pseudo_label", augment=_few_labels.WEAK[data]),
            data=_few_labels.sources(data, ratio=7),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="5%"),
            evals=dict(loss=dict(max_examples=5_000)),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=100),
            batch_size=32,
            steps=400,
        )
    )
