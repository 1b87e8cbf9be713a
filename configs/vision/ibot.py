"""iBOT (Zhou et al. 2022): DINO, and the teacher's output at patches that are hidden from the student.

Trains a vision transformer of 0.15M parameters on CIFAR-10 or MNIST without labels.

    ssljax train --config configs/vision/ibot.py --workdir runs/ibot
    ssljax train --config configs/vision/ibot.py:data=mnist --workdir runs/ibot-mnist
    ssljax train --config configs/vision/ibot.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 6 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe on held-out digits, one seed: 0.935 (raw pixels 0.921, untrained encoder 0.921);
docs/results.md, section 1.

`--config.objective.patch_weight=0` leaves DINO with hidden patches; `--config.objective.mask_probability=0` leaves
DINO.
"""

import _images
import ml_collections

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=_images.DATA)
    return ml_collections.ConfigDict(
        dict(
            model=dict(_images.vit(_images.PATCH_SIZE[a["data"]]), mask_token=True, pool="cls"),
            objective=dict(
                name="ibot",
                head=dict(hidden=512, bottleneck=128, prototypes=256),
                # As in dino.py.
                student_temperature=0.05,
                teacher_temperature=0.02,
                teacher_temperature_start=0.02,
                momentum=0.99,
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
            steps=700,
        )
    )
