"""Jigsaw (Noroozi & Favaro 2016): in which order are the tiles of an image?

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/jigsaw.py --workdir runs/jigsaw
    ssljax train --config configs/vision/jigsaw.py:data=mnist --workdir runs/jigsaw-mnist
    ssljax train --config configs/vision/jigsaw.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 3 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.872 (raw pixels 0.889,
untrained encoder 0.848); docs/results.md, section 1.
"""

import _images

from ssljax.config import arguments

# The sides of tiles are multiples of the side of the model's patches.
TILES = {
    "cifar10": dict(gap=2),
    "mnist": dict(gap=1, normalize_tiles=False),  # many tiles of a digit are blank
    "folder": dict(gap=5),
}


def get_config(arg=""):
    data = arguments(arg, data=_images.DATA)["data"]
    objective = dict(name="jigsaw", hidden=256, permutations=64, **TILES[data])
    return _images.one_view(data, objective, steps=400)
