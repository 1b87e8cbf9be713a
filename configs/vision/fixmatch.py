"""FixMatch (Sohn et al. 2020): confident classes of weak views are labels of strong views.

Trains a ResNet of 0.31M parameters on 100 labelled and all unlabelled digits of MNIST, or a vision transformer of 0.15M
parameters on 1,000 labelled and all unlabelled images of CIFAR-10.

    ssljax train --config configs/vision/fixmatch.py --workdir runs/fixmatch
    ssljax train --config configs/vision/fixmatch.py:data=cifar10 --workdir runs/fixmatch-cifar
    ssljax train --config configs/vision/fixmatch.py:data=folder --workdir runs/x --config.data.source=images:DIR

Pictures without labels are those of `data.source`, or of `--config.data.streams.unlabeled.source=images:DIR`.

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy on held-out digits with 100 labels: 0.933 (labels alone 0.871); docs/results.md, section 1.
"""

import _few_labels

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=_few_labels.DATA)["data"]
    return _few_labels.config(data, name="fixmatch", augment=_few_labels.WEAK[data], strong=_few_labels.STRONG[data])
