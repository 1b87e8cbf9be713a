"""Share of hidden patches of MAE (He et al. 2022, figure 5), and of hidden tokens of BERT, 15 to 90 %.

`data=images` (the default): a masked autoencoder on CIFAR-10; in the paper 75 % is best for a linear probe.
`data=text`: masked language modelling on news, where Wettig et al. 2023 find 40 % better than 15 % for large models.
The probe tells classes of pictures, or topics.

    ssljax sweep --config configs/ablations/mask_ratio.py --workdir runs/ablations
    ssljax sweep --config configs/ablations/mask_ratio.py:data=text --name mask_ratio_text --workdir runs/ablations
    python benchmarks/ablations.py mask_ratio --store runs/ablations
"""

import _small

from ssljax.config import arguments

RATIOS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)


def get_config(arg=""):
    evals = dict(linear=_small.probe())
    if arguments(arg, data=("images", "text"))["data"] == "text":
        axes = dict(grid=(("objective.rate", RATIOS),))
        return _small.study(_small.BERT, dict(name="mlm"), _small.NEWS, 1000, axes, evals, batch_size=64)
    axes = dict(grid=(("objective.mask_ratio", RATIOS),))
    objective = dict(name="mae", decoder=dict(width=64, depth=1, heads=4))
    return _small.study(_small.vit(4), objective, _small.CIFAR10, 300, axes, evals)
