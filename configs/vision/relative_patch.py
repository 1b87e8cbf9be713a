"""Relative patch (Doersch et al. 2015): which neighbour of a patch is another patch?

Trains a vision transformer of 0.15M parameters on CIFAR-10, or a ResNet of 0.31M parameters on MNIST, without labels.

    ssljax train --config configs/vision/relative_patch.py --workdir runs/relative_patch
    ssljax train --config configs/vision/relative_patch.py:data=mnist --workdir runs/relative_patch-mnist
    ssljax train --config configs/vision/relative_patch.py:data=folder --workdir runs/x --config.data.source=images:DIR

Time: 2 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.871 (raw pixels 0.889,
untrained encoder 0.848); docs/results.md, section 1.
"""

import _images

from ssljax.config import arguments

# Patches that fit into the small images; those of the paper have 96 pixels, a gap of 48 and a jitter of 7.
PATCHES = {
    "cifar10": dict(patch=8, gap=2, jitter=1),
    "mnist": dict(patch=8, gap=1, jitter=1),
    "folder": dict(patch=16, gap=4, jitter=2),
}


def get_config(arg=""):
    data = arguments(arg, data=_images.DATA)["data"]
    objective = dict(name="relative_patch", hidden=256, **PATCHES[data])
    return _images.one_view(data, objective, steps=400, batch_size=256)
