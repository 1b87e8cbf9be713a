"""MoCo with queues of 16 to 4,096 negatives: the bound on the mutual information of two views, against log K.

InfoNCE bounds the mutual information of two views by log(K + 1) - loss, with K negatives (van den Oord et al. 2018,
section 2.3), so the bound is at most log(K + 1): with few negatives it says little, however good the encoder.

    ssljax sweep --config configs/ablations/negatives.py --workdir runs/ablations --dry-run
    ssljax sweep --config configs/ablations/negatives.py --workdir runs/ablations
    python benchmarks/ablations.py negatives --store runs/ablations
"""

import _small


def get_config(arg=""):
    axes = dict(grid=(("objective.queue", (16, 64, 256, 1024, 4096)),))
    objective = dict(
        name="moco",
        temperature=0.2,
        projector=dict(hidden=128, output=64, norm=None),
        predictor=None,
        symmetric=False,
        teacher=dict(momentum=0.98),
        augment=_small.DIGITS,
    )
    evals = dict(loss=dict(max_examples=4096), linear=_small.probe(labels_per_class=100, draws=3))
    return _small.study(_small.RESNET, objective, _small.MNIST, 240, axes, evals)
