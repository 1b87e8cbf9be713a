"""Masked images on CIFAR-10: pixels with errors l1 or l2, or gradients (HOG), as targets (Wei et al. 2022, table 2).

Masked patches enter the encoder (SimMIM); 60 % are hidden. In the paper gradients are better than pixels.

    ssljax sweep --config configs/ablations/targets.py --workdir runs/ablations
    python benchmarks/ablations.py targets --store runs/ablations
"""

import _small


def get_config(arg=""):
    axes = dict(
        zip=(("objective.target", ("pixels", "pixels", "hog")), ("objective.error", ("l1", "l2", "l2"))), seeds=2
    )
    objective = dict(name="simmim", mask_ratio=0.6)
    return _small.study(
        dict(_small.vit(4), mask_token=True), objective, _small.CIFAR10, 300, axes, dict(linear=_small.probe())
    )
