"""N-pair loss (Sohn 2016): a view of an image finds the other one among those of the batch, by dot products.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/n_pair.py --workdir runs/n_pair
    ssljax train --config configs/vision/n_pair.py:data=mnist --workdir runs/n_pair-mnist
    ssljax train --config configs/vision/n_pair.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 3 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.939 (raw pixels 0.889,
untrained encoder 0.848); docs/results.md, section 1.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="n_pair",
        l2=0.003,
        projector=dict(hidden=512, output=128),
    )
