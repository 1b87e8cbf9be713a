"""SimSiam (Chen & He 2021): each view predicts the other one, which is taken as a constant.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/simsiam.py --workdir runs/simsiam
    ssljax train --config configs/vision/simsiam.py:data=mnist --workdir runs/simsiam-mnist
    ssljax train --config configs/vision/simsiam.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.920 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.stop_gradient=false` leaves out the constant target, without which runs of the paper collapse.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="simsiam",
        projector=dict(hidden=512, output=256, layers=2),
        predictor=dict(hidden=128),
    )
