"""Collapse of methods without negatives: each with the part that prevents it, and without.

Scikit-learn's digits and the vision transformer of the quickstart, three seeds each. The methods are `byol` (without
its predictor), `simsiam` (without predictor, without stop-gradient), `vicreg` (without its variance term), `dino`
(without centring) and `swav` (without Sinkhorn's balancing).

    ssljax sweep --config configs/ablations/collapse.py --workdir runs/ablations --dry-run
    ssljax sweep --config configs/ablations/collapse.py:method=simsiam --workdir runs/ablations
    python benchmarks/ablations.py collapse --store runs/ablations

Time: 2 minutes for a method on two CPU cores.
"""

import ml_collections

from ssljax.config import arguments

AUGMENT = dict(flip=0.0, jitter=0.3, brightness=0.4, contrast=0.4, gray=0.0, blur=0.0)
TWO_VIEWS = dict(name="two_views", crop_scale=(0.6, 1.0), augment=AUGMENT, second=None)
CROPS = dict(
    name="multi_crop", local_crops=0, size=8, global_scale=(0.6, 1.0), augment=AUGMENT, second=None, local=None
)
PROJECTOR = dict(hidden=256, output=64)
PREDICTOR = dict(hidden=128)

# The objective, and the axes of its study: the first values are those of the method.
METHODS = {
    "byol": (
        dict(projector=PROJECTOR, predictor=PREDICTOR, teacher=dict(momentum=0.98), augment=TWO_VIEWS),
        dict(grid=(("objective.predictor", (PREDICTOR, None)),)),
    ),
    "simsiam": (
        dict(projector=PROJECTOR, predictor=PREDICTOR, augment=TWO_VIEWS),
        dict(
            zip=(
                ("objective.predictor", (PREDICTOR, None, PREDICTOR)),
                ("objective.stop_gradient", (True, True, False)),
            )
        ),
    ),
    "vicreg": (
        dict(projector=dict(hidden=256, output=256), augment=TWO_VIEWS),
        dict(grid=(("objective.var", (25.0, 0.0)),)),
    ),
    "dino": (
        dict(
            head=dict(hidden=256, bottleneck=64, prototypes=128),
            student_temperature=0.05,
            teacher_temperature=0.02,
            teacher_temperature_start=0.02,
            momentum=0.98,
            augment=CROPS,
        ),
        dict(grid=(("objective.centering", (0.9, None)),)),
    ),
    "swav": (
        dict(prototypes=16, projector=PROJECTOR, augment=CROPS),
        dict(grid=(("objective.sinkhorn_iterations", (3, 0)),)),
    ),
}


def get_config(arg=""):
    method = arguments(arg, method=tuple(METHODS))["method"]
    objective, study = METHODS[method]
    return ml_collections.ConfigDict(
        dict(
            model=dict(
                name="vit", preset=None, width=64, depth=3, heads=4, patch_size=2, pool="mean", positions="sincos"
            ),
            objective=dict(name=method, **objective),
            data=dict(source="builtin:digits"),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.05),
            schedule=dict(name="cosine", warmup="10%"),
            evals=dict(knn=dict(labels_per_class=1, draws=20)),
            log=dict(every_steps=20, trackers=(), pictures=False),
            checkpoint=dict(every_steps=100, keep=1),
            batch_size=128,
            steps=200,
            study=dict(study, name=f"collapse_{method}", seeds=3),
        )
    )
