"""Mean teacher (Tarvainen & Valpola 2017): the moving average of the model is the target for unlabelled images.

Trains a ResNet of 0.31M parameters on 100 labelled and all unlabelled digits of MNIST, or a vision transformer of 0.15M
parameters on 1,000 labelled and all unlabelled images of CIFAR-10.

    ssljax train --config configs/vision/mean_teacher.py --workdir runs/mean_teacher
    ssljax train --config configs/vision/mean_teacher.py:data=cifar10 --workdir runs/mean_teacher-cifar
    ssljax train --config configs/vision/mean_teacher.py:data=folder --workdir runs/x --config.data.source=images:DIR

Pictures without labels are those of `data.source`, or of `--config.data.streams.unlabeled.source=images:DIR`.

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy on held-out digits with 100 labels: 0.864 (labels alone 0.859); docs/results.md, section 1.
"""

import _few_labels

from ssljax.config import arguments


def get_config(arg=""):
    data = arguments(arg, data=_few_labels.DATA)["data"]
    # The paper's 0.99, 0.999 and 100 are for thousands of steps.
    short = dict(momentum=0.95, momentum_after=0.98, weight=10.0)
    return _few_labels.config(data, name="mean_teacher", augment=_few_labels.STRONG[data], **short)
