"""MoCo v3 (Chen, Xie, He 2021): queries of a student find the keys of a momentum encoder in the batch.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/moco.py --workdir runs/moco
    ssljax train --config configs/vision/moco.py:data=mnist --workdir runs/moco-mnist
    ssljax train --config configs/vision/moco.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 5 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.938 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

v2 (He et al. 2020) has a queue: `--config.objective.queue=4096 --config.objective.symmetric=False
--config.objective.predictor=None --config.objective.projector.norm=None`.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="moco",
        temperature=0.2,
        projector=dict(hidden=512, output=128, layers=2),
        predictor=dict(hidden=256),
        teacher=dict(momentum=0.98),
        augment=dict(second=None),  # both views alike
    )
