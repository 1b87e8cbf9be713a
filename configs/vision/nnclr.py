"""NNCLR (Dwibedi et al. 2021): the positive of a view is a nearest neighbour of the other one.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/nnclr.py --workdir runs/nnclr
    ssljax train --config configs/vision/nnclr.py:data=mnist --workdir runs/nnclr-mnist
    ssljax train --config configs/vision/nnclr.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.938 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.queue=256` seeks neighbours among fewer images.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="nnclr",
        temperature=0.1,
        projector=dict(hidden=512, output=128),
        predictor=dict(hidden=256),
        queue=4096,
    )
