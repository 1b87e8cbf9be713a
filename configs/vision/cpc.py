"""Contrastive predictive coding (van den Oord et al. 2018): which part of an image lies below those seen so far?

Trains a vision transformer of 0.15M parameters, which sees squares of an image one by one, and a causal transformer
over them, on CIFAR-10 or MNIST without labels.

    ssljax train --config configs/vision/cpc.py --workdir runs/cpc
    ssljax train --config configs/vision/cpc.py:data=mnist --workdir runs/cpc-mnist
    ssljax train --config configs/vision/cpc.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for CIFAR-10.
Result: accuracy of a linear probe with 100 labels per class on held-out images: 0.339 (raw pixels 0.339, untrained
encoder 0.305); docs/results.md, section 1.
"""

import _images

from ssljax.config import arguments

# Squares of a photo do not overlap; those of a digit, of which few have strokes, do.
PARTS = {
    "cifar10": dict(part=8, ahead=3),
    "mnist": dict(part=14, stride=7, ahead=2),
    "folder": dict(part=16, stride=8, ahead=4),
}
AUGMENT = {
    "cifar10": dict(crop_scale=(0.4, 1.0), augment=dict(flip=0.5)),
    "mnist": dict(crop_scale=(0.7, 1.0)),
    "folder": dict(size=48, crop_scale=(0.4, 1.0), augment=dict(flip=0.5)),
}


def get_config(arg=""):
    data = arguments(arg, data=_images.DATA)["data"]
    objective = dict(
        name="cpc",
        **PARTS[data],
        context=dict(width=64, depth=1, heads=2),
        augment=dict(name="single", **AUGMENT[data]),
    )
    config = _images.one_view(data, objective, steps=400)
    config.model = _images.vit(_images.PATCH_SIZE[data])
    return config
