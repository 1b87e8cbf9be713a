"""A masked autoencoder on CIFAR-10 whose patches are hidden one by one, in blocks, or as a part of the picture.

Three fifths of the patches are hidden in each run: at random, in one block or several, as any part that is to be told
from any other (the top, the past, ...), or in blocks that grow during the first half of the run (a curriculum). In He
et al. 2022, table 1f, random masks are best for a linear probe, blocks of that size worst. The probe tells classes.

    ssljax sweep --config configs/ablations/masking.py --workdir runs/ablations
    python benchmarks/ablations.py masking --store runs/ablations
"""

import _small

MASKINGS = {
    "random": dict(name="random"),
    "blocks": dict(name="blocks"),
    "one block": dict(name="blocks", scale=(0.6, 0.6), aspect=(1.0, 1.0)),
    "growing blocks": dict(name="blocks", grows=("size",)),
    "parts": dict(name="parts"),
}


def get_config(arg=""):
    axes = dict(grid=(("objective.masking", tuple(MASKINGS.values())),), seeds=2)
    objective = dict(name="mae", mask_ratio=0.6, decoder=dict(width=64, depth=1, heads=4))
    return _small.study(_small.vit(4), objective, _small.CIFAR10, 300, axes, dict(linear=_small.probe()))
