"""DINO (Caron et al. 2021): a student matches its own moving average across large and small crops.

Trains a vision transformer of 0.15M parameters on CIFAR-10 or MNIST without labels.

    ssljax train --config configs/vision/dino.py --workdir runs/dino
    ssljax train --config configs/vision/dino.py:data=mnist --workdir runs/dino-mnist
    ssljax train --config configs/vision/dino.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 7 minutes on one CPU core.
Result: accuracy of a linear probe with 100 labels per class on held-out images: CIFAR-10 0.349 (raw pixels 0.329),
MNIST 0.913 (raw pixels 0.898); docs/results.md, section 1.

`--config.objective.centering=none` shows the collapse.
"""

import _images
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=_images.DATA)
    return ml_collections.ConfigDict(
        dict(
            model=_images.vit(_images.PATCH_SIZE[a["data"]]),
            objective=dict(
                name="dino",
                head=dict(hidden=512, bottleneck=128, prototypes=256),
                # Half the paper's temperatures, the teacher's without warm-up: flat targets slow down a short run.
                student_temperature=0.05,
                teacher_temperature=0.02,
                teacher_temperature_start=0.02,
                momentum=0.99,  # for a short run, so that the teacher forgets its initial values
                augment=_images.crops(a["data"]),
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(
                name="adamw", learning_rate=2e-3, weight_decay=0.05, clip_norm=3.0, freeze=[("last_layer", "5%")]
            ),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"], feature=_images.VIT_FEATURE[a["data"]]),
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=500),
            batch_size=64,
            steps=1100,
        )
    )
