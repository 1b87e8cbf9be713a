"""Alignment and uniformity (Wang & Isola 2020): views of an image are near, all images spread over the sphere.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/align_uniform.py --workdir runs/align_uniform
    ssljax train --config configs/vision/align_uniform.py:data=mnist --workdir runs/align_uniform-mnist
    ssljax train --config configs/vision/align_uniform.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.947 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.weight=0` leaves out the alignment; `docs/objectives.md` has the formula.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="align_uniform",
        projector=dict(hidden=512, output=128),
    )
