"""Contrastive pairs (Hadsell et al. 2006): images of a class are near each other, others farther than a margin.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, with labels.

    ssljax train --config configs/vision/contrastive_pairs.py --workdir runs/contrastive_pairs
    ssljax train --config configs/vision/contrastive_pairs.py:data=mnist --workdir runs/contrastive_pairs-mnist
    ssljax train --config configs/vision/contrastive_pairs.py:data=folder --workdir runs/x \
        --config.data.source=images:DIR

Time: 3 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.961 (raw pixels 0.889,
untrained encoder 0.848); docs/results.md, section 1.

`--config.objective.positives=views` needs no labels: the positive of a view is the other view of its image.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="contrastive_pairs",
        margin=5.0,
        projector=dict(hidden=512, output=128),
    )
