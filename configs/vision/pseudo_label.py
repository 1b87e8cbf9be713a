"""Pseudo-label (Lee 2013): the most probable class of an unlabelled image is its label.

Trains a ResNet of 0.31M parameters on 100 labelled and all unlabelled digits of MNIST, or a vision transformer of 0.15M
parameters on 1,000 labelled and all unlabelled images of CIFAR-10.

    ssljax train --config configs/vision/pseudo_label.py --workdir runs/pseudo_label
    ssljax train --config configs/vision/pseudo_label.py:data=cifar10 --workdir runs/pseudo_label-cifar
    ssljax train --config configs/vision/pseudo_label.py:data=folder --workdir runs/x --config.data.source=images:DIR

Pictures without labels are those of `data.source`, or of `--config.data.streams.unlabeled.source=images:DIR`.

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy on held-out digits with 100 labels: 0.892 (labels alone 0.871); docs/results.md, section 1.
"""

import _few_labels

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=_few_labels.DATA)["data"]
    return _few_labels.config(data, name="pseudo_label", augment=_few_labels.WEAK[data])
