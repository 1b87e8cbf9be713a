"""SimMIM on CIFAR-10 whose patches are hidden at random, or by a masker that learns which ones are hard.

Wang et al. 2023, "Hard Patches Mining for Masked Image Modeling": the share of hard patches grows from 0 to a half; a
constant half is worse in the paper, and so are hard patches alone. The probe tells classes.

    ssljax sweep --config configs/ablations/adversary.py --workdir runs/ablations
    python benchmarks/ablations.py adversary --store runs/ablations
"""

import _small

MASKERS = {
    "none": None,
    "up to a half": dict(share=0.5),
    "a half": dict(share=0.5, grows=False),
    "up to all": dict(share=1.0),
}


def get_config(arg=""):
    axes = dict(grid=(("objective.adversary", tuple(MASKERS.values())),), seeds=2)
    objective = dict(name="simmim", mask_ratio=0.6, error="l2")
    model = dict(_small.vit(4), mask_token=True)
    return _small.study(model, objective, _small.CIFAR10, 300, axes, dict(linear=_small.probe()))
