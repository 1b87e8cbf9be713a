"""Rotation (Gidaris et al. 2018): by how many quarter turns is an image rotated?

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/rotation.py --workdir runs/rotation
    ssljax train --config configs/vision/rotation.py:data=mnist --workdir runs/rotation-mnist
    ssljax train --config configs/vision/rotation.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.908 (raw pixels 0.889,
untrained encoder 0.854); docs/results.md, section 1.
"""

import _images

from ssljax.config import arguments

AUGMENT = {
    "cifar10": dict(name="single", crop_scale=(0.5, 1.0), augment=dict(flip=0.5)),
    "mnist": dict(name="single", crop_scale=(0.7, 1.0), augment=dict(flip=0.0)),
    "folder": dict(name="single", size=48, crop_scale=(0.3, 1.0), augment=dict(flip=0.5)),
}


def get_config(arg=""):
    data = arguments(arg, data=_images.DATA)["data"]
    objective = dict(name="rotation", augment=AUGMENT[data])
    return _images.one_view(data, objective, steps=150 if data == "mnist" else 400)
