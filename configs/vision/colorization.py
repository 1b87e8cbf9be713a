"""Colourisation (Zhang et al. 2016): the colours of an image are predicted from its lightness.

Trains a vision transformer of 0.15M parameters on CIFAR-10 without labels.

    ssljax train --config configs/vision/colorization.py --workdir runs/colorization
    ssljax train --config configs/vision/colorization.py:form=regression --workdir runs/colorization-l2
    ssljax train --config configs/vision/colorization.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core.
Result: accuracy of a linear probe with 100 labels per class on held-out images: 0.259 (raw pixels 0.339, untrained
encoder 0.272); docs/results.md, section 1.
"""

import _images

from ssljax.config import arguments

AUGMENT = {
    "cifar10": dict(name="single", crop_scale=(0.5, 1.0), augment=dict(flip=0.5)),
    "folder": dict(name="single", size=48, crop_scale=(0.3, 1.0), augment=dict(flip=0.5)),
}


def get_config(arg=""):
    a = arguments(arg, data=tuple(AUGMENT), form=("classes", "regression"))
    objective = dict(name="colorization", form=a["form"], cell=2, augment=AUGMENT[a["data"]])
    return _images.one_view(a["data"], objective, steps=500, batch_size=64)
