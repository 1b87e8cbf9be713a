"""Triplet loss (Schroff et al. 2015): an image is nearer to images of its class than to others, by a margin.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, with labels.

    ssljax train --config configs/vision/triplet.py --workdir runs/triplet
    ssljax train --config configs/vision/triplet.py:data=mnist --workdir runs/triplet-mnist
    ssljax train --config configs/vision/triplet.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.977 (raw pixels 0.889,
untrained encoder 0.848); docs/results.md, section 1.

`--config.objective.positives=views` needs no labels: the positive of a view is the other view of its image.
"""

import _images


def get_config(arg=""):
    config = _images.two_views(arg, name="triplet", mining="semi", projector=dict(hidden=512, output=128))
    # The triplets of a batch grow with its third power, so batches are half as large.
    config.batch_size //= 2
    config.steps *= 2
    return config
