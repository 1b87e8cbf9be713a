"""SupCon (Khosla et al. 2020): all views of the images of a class are positives of each other.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, with labels.

    ssljax train --config configs/vision/sup_con.py --workdir runs/sup_con
    ssljax train --config configs/vision/sup_con.py:data=mnist --workdir runs/sup_con-mnist
    ssljax train --config configs/vision/sup_con.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.975 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.positive_mean=inside` moves the mean into the logarithm (eq. 3).
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="sup_con",
        temperature=0.1,
        projector=dict(hidden=512, output=128),
    )
