"""Fusion of principles: a masked autoencoder (He et al. 2022) beside SimCLR (Chen et al. 2020), on one encoder.

Trains a vision transformer of 0.15M parameters on MNIST or CIFAR-10 without labels.

    ssljax train --config configs/vision/fusion.py --workdir runs/fusion
    ssljax train --config configs/vision/fusion.py:data=cifar10 --workdir runs/fusion-cifar10
    ssljax train --config configs/vision/fusion.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.948 (SimCLR alone with as many FLOPs
0.951, raw pixels 0.889, untrained encoder 0.888); docs/results.md, section 1.

The loss is the sum of both; `--config.objective.weights.simclr=0.1` changes the share. `parts=mae` and `parts=simclr`
train one part alone with as much compute, the controls of the table.
"""

import _images
import ml_collections

from ssljax.config import arguments

STEPS = {"both": 400, "mae": 1950, "simclr": 500}  # of about as many FLOPs


def get_config(arg=""):
    a = arguments(arg, data=("mnist", "cifar10", "folder"), parts=tuple(STEPS))
    data = a["data"]
    augment = dict(name="two_views", **_images.TWO_VIEWS[data], augment=_images.AUGMENT[data], second=None)
    parts = dict(
        mae=dict(name="mae", decoder=dict(width=64, depth=1, heads=4)),
        simclr=dict(name="simclr", temperature=0.2, augment=augment),
    )
    alone = a["parts"] != "both"
    return ml_collections.ConfigDict(
        dict(
            model=_images.vit(_images.PATCH_SIZE[data]),
            objective=parts[a["parts"]] if alone else dict(name="fusion", parts=parts, read="simclr"),
            data=_images.SOURCES[data],
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(data, feature=_images.VIT_FEATURE[data]),
            log=dict(every_steps=25),
            checkpoint=dict(every_steps=200),
            batch_size=128,
            steps=STEPS[a["parts"]],
        )
    )
