"""VICReg (Bardes, Ponce, LeCun 2022): views agree, while each dimension varies and differs from the others.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/vicreg.py --workdir runs/vicreg
    ssljax train --config configs/vision/vicreg.py:data=mnist --workdir runs/vicreg-mnist
    ssljax train --config configs/vision/vicreg.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.937 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.var=0` leaves out the variance, without which runs of the paper collapse.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="vicreg",
        projector=dict(hidden=512, output=512),
        augment=dict(second=None),  # both views alike
    )
