"""SimCLR on MNIST: size of the batch against temperature, after the same number of images (Chen et al. 2020, table 5).

Three sizes of batches by five temperatures; every run sees 30,720 images. In the paper, with ResNet-50 on ImageNet,
larger batches are better in short runs, and the best temperature of normalised vectors is 0.1.

    ssljax sweep --config configs/ablations/temperature.py --workdir runs/ablations --dry-run
    ssljax sweep --config configs/ablations/temperature.py --workdir runs/ablations
    python benchmarks/ablations.py temperature --store runs/ablations
"""

import _small


def get_config(arg=""):
    axes = dict(
        grid=(("batch_size", (32, 128, 512)), ("objective.temperature", (0.05, 0.1, 0.2, 0.5, 1.0))),
    )
    objective = dict(name="simclr", projector=dict(hidden=128, output=64), augment=_small.DIGITS)
    evals = dict(linear=_small.probe(labels_per_class=100, draws=3))
    return _small.study(_small.RESNET, objective, _small.MNIST, "30720 examples", axes, evals)
