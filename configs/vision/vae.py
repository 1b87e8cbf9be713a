"""Variational autoencoder (Kingma & Welling 2014): codes of 32 numbers near N(0, 1).

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/vae.py --workdir runs/vae
    ssljax train --config configs/vision/vae.py:data=mnist --workdir runs/vae-mnist
    ssljax train --config configs/vision/vae.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 5 minutes on one CPU core for MNIST.
Result: squared error of held-out digits, restored from 32 numbers: 0.013 (32 principal components 0.017,
untrained 0.387); accuracy of a linear probe of the codes with 100 labels per class 0.902 (untrained 0.730);
docs/results.md, section 1.
"""

import _images


def get_config(arg=""):
    return _images.autoencoder(arg, name="vae", pixel_std=0.5)
