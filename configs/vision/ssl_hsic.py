"""SSL-HSIC (Li et al. 2021): embeddings depend on the identity of the image as much as a kernel can tell.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/ssl_hsic.py --workdir runs/ssl_hsic
    ssljax train --config configs/vision/ssl_hsic.py:data=mnist --workdir runs/ssl_hsic-mnist
    ssljax train --config configs/vision/ssl_hsic.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.941 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.gamma=0` leaves out the dependence on themselves.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="ssl_hsic",
        projector=dict(hidden=512, output=128),
        predictor=dict(hidden=256),
        teacher=dict(momentum=0.98),
        augment=dict(second=None),  # both views alike
    )
