"""MSN (Assran et al. 2022): the cluster of an image is predicted from other crops, of which patches are dropped.

Trains a vision transformer of 0.15M parameters on CIFAR-10 or MNIST without labels.

    ssljax train --config configs/vision/msn.py --workdir runs/msn
    ssljax train --config configs/vision/msn.py:data=mnist --workdir runs/msn-mnist
    ssljax train --config configs/vision/msn.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 4 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.900 (raw pixels 0.889, untrained
encoder 0.887); docs/results.md, section 1.

`--config.objective.entropy_weight=0` shows the collapse.
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
                name="msn",
                mask_ratio=0.3,
                prototypes=128,
                projector=dict(hidden=512, output=128, layers=2),
                teacher=dict(momentum=0.98),  # for a short run, so that the teacher forgets its initial values
                augment=_images.crops(a["data"]),
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(
                name="adamw", learning_rate=2e-3, weight_decay=0.05, clip_norm=3.0, freeze=[("^prototypes", "2%")]
            ),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"], feature=_images.VIT_FEATURE[a["data"]]),
            log=dict(every_steps=50),
            checkpoint=dict(every_steps=200),
            batch_size=128,
            steps=650,
        )
    )
