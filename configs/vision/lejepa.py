"""LeJEPA (Balestriero & LeCun 2025): views agree, and embeddings follow a standard normal distribution.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/lejepa.py --workdir runs/lejepa
    ssljax train --config configs/vision/lejepa.py:data=mnist --workdir runs/lejepa-mnist
    ssljax train --config configs/vision/lejepa.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 5 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.929 (raw pixels 0.889, untrained
encoder 0.854); docs/results.md, section 1.

`--config.objective.weight=0` leaves out SIGReg, without which nothing keeps embeddings apart.
"""

import _images


def get_config(arg=""):
    return _images.two_views(
        arg,
        name="lejepa",
        projector=dict(hidden=512, output=64),
        directions=256,
    )
