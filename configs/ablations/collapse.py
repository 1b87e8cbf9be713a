"""Collapse of BYOL and SimSiam when a part is left out (Grill et al. 2020, table 5; Chen & He 2021, section 4.1).

`method=byol` (the default) with and without predictor and teacher, `method=simsiam` with and without predictor and
stop-gradient. The standard deviation of projections tells collapse; a collapsed loss is the best one. Projections
have no batch norm, with which they stay apart for longer than these short runs.

    ssljax sweep --config configs/ablations/collapse.py --workdir runs/ablations
    ssljax sweep --config configs/ablations/collapse.py:method=simsiam --name collapse_simsiam --workdir runs/ablations
    python benchmarks/ablations.py collapse --store runs/ablations
"""

import _small

from ssljax.config import arguments


def get_config(arg=""):
    method = arguments(arg, method=("byol", "simsiam"))["method"]
    predictor, projector = dict(hidden=128), dict(hidden=256, output=128, final_norm=False)
    objective = dict(name=method, projector=projector, predictor=predictor, augment=_small.DIGITS)
    if method == "byol":
        objective["teacher"] = teacher = dict(momentum=0.98)
        other = ("objective.teacher", (teacher, None))
    else:
        other = ("objective.stop_gradient", (True, False))
    axes = dict(grid=(("objective.predictor", (predictor, None)), other))
    evals = dict(loss=dict(max_examples=1024), linear=_small.probe(labels_per_class=100, draws=3))
    return _small.study(_small.RESNET, objective, _small.MNIST, 200, axes, evals)
