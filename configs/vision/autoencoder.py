"""Autoencoder (Hinton & Salakhutdinov 2006): images are restored from codes of 32 numbers.

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/autoencoder.py --workdir runs/autoencoder
    ssljax train --config configs/vision/autoencoder.py:data=mnist --workdir runs/autoencoder-mnist
    ssljax train --config configs/vision/autoencoder.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 6 minutes on one CPU core for MNIST.
Result: squared error of held-out digits, restored from 32 numbers: 0.014 (32 principal components 0.017,
untrained 0.484); accuracy of a linear probe of the codes with 100 labels per class 0.900 (untrained 0.714);
docs/results.md, section 1.
"""

import _images


def get_config(arg=""):
    return _images.autoencoder(arg, name="autoencoder")
