"""DCL (Yeh et al. 2022): SimCLR without the positive pair in the denominator.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/dcl.py --workdir runs/dcl
    ssljax train --config configs/vision/dcl.py:data=mnist --workdir runs/dcl-mnist
    ssljax train --config configs/vision/dcl.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.943 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.weighted=true` is DCLW.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="dcl",
        temperature=0.2,
        projector=dict(hidden=512, output=128),
    )
