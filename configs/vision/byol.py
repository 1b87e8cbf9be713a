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


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="byol",
        projector=dict(hidden=512, output=128),
        predictor=dict(hidden=256),
        teacher=dict(momentum=0.98),
        augment=dict(second=None),  # both views alike
    )
