"""SimCLR on CIFAR-10 with one or two operations on its views (Chen et al. 2020, figure 5).

Six operations, each alone and in pairs: crops, colour (jitter and grey), cutout, noise, blur, rotation. Without crops
a view is the whole picture. 21 runs of 300 steps. In the paper, with ResNet-50 on ImageNet, crops with colour are far
better than all other pairs.

    ssljax sweep --config configs/ablations/augmentations.py --workdir runs/ablations --dry-run
    ssljax sweep --config configs/ablations/augmentations.py --workdir runs/ablations
    python benchmarks/ablations.py augmentations --store runs/ablations
"""

import itertools

import _small

OFF = {
    "objective.augment.crop_scale": (1.0, 1.0),
    "objective.augment.augment.jitter": 0.0,
    "objective.augment.augment.gray": 0.0,
    "objective.augment.augment.cutout": 0.0,
    "objective.augment.augment.noise": 0.0,
    "objective.augment.augment.blur": 0.0,
    "objective.augment.augment.rotate": 0.0,
}
OPERATIONS = {
    "crop": {"objective.augment.crop_scale": (0.2, 1.0)},
    "colour": {"objective.augment.augment.jitter": 0.8, "objective.augment.augment.gray": 0.2},
    "cutout": {"objective.augment.augment.cutout": 1.0},
    "noise": {"objective.augment.augment.noise": 1.0},
    "blur": {"objective.augment.augment.blur": 1.0},
    "rotate": {"objective.augment.augment.rotate": 1.0},
}


def get_config(arg=""):
    chosen = [*((name,) for name in OPERATIONS), *itertools.combinations(OPERATIONS, 2)]
    keys = [OFF | {key: value for name in names for key, value in OPERATIONS[name].items()} for names in chosen]
    axes = tuple((key, tuple(one[key] for one in keys)) for key in OFF)
    objective = dict(
        name="simclr",
        temperature=0.2,
        augment=dict(
            name="two_views",
            size=16,
            augment=dict(flip=0.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur_sigma=(0.5, 1.0)),
            second=None,
        ),
    )
    evals = dict(linear=_small.probe())
    return _small.study(_small.vit(4), objective, _small.CIFAR10, 300, dict(zip=axes), evals)
