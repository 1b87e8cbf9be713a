"""data2vec (Baevski et al. 2022): the features that a teacher has of a whole image are predicted at masked patches.

Trains a vision transformer of 0.15M parameters on CIFAR-10 or MNIST without labels.

    ssljax train --config configs/vision/data2vec.py --workdir runs/data2vec
    ssljax train --config configs/vision/data2vec.py:data=mnist --workdir runs/data2vec-mnist
    ssljax train --config configs/vision/data2vec.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 5 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe with 100 labels per class on held-out digits: 0.899 (raw pixels 0.889, untrained
encoder 0.899); docs/results.md, section 1.
"""

import _images
import ml_collections

from ssljax.config import arguments

AUGMENT = {
    "cifar10": dict(name="single", crop_scale=(0.4, 1.0), augment=dict(flip=0.5)),
    "mnist": dict(name="single", crop_scale=(0.8, 1.0), augment=dict(flip=0.0)),
}
AUGMENT["folder"] = AUGMENT["cifar10"]


def get_config(arg=""):
    a = arguments(arg, data=_images.DATA)
    return ml_collections.ConfigDict(
        dict(
            model=dict(_images.vit(patch_size=8 if a["data"] == "folder" else 4), mask_token=True),
            objective=dict(
                name="data2vec",
                smallest=5,  # of 64 patches; in the paper 16 of 196
                top_blocks=2,
                teacher=dict(momentum=0.98),  # for a short run, so that the teacher forgets its initial values
                augment=AUGMENT[a["data"]],
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"], feature=_images.VIT_FEATURE[a["data"]]),
            log=dict(every_steps=50),
            checkpoint=dict(every_steps=100),
            batch_size=64,
            steps=700,
        )
    )
