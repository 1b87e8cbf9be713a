"""Barlow Twins (Zbontar et al. 2021): the correlation of two views is pushed towards the identity.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/barlow_twins.py --workdir runs/barlow_twins
    ssljax train --config configs/vision/barlow_twins.py:data=mnist --workdir runs/barlow_twins-mnist
    ssljax train --config configs/vision/barlow_twins.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.943 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.lambda_offdiag=0` leaves out the reduction of redundancy.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="barlow_twins",
        projector=dict(hidden=512, output=512),
        lambda_offdiag=0.01,
        augment=dict(second=None),  # both views alike
    )
