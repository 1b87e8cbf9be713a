"""SimMIM (Xie et al. 2022) and MaskFeat (Wei et al. 2022): pixels, or gradients, of patches that a mask token replaces.

Trains a vision transformer of 0.15M parameters on CIFAR-10 or MNIST without labels.

    ssljax train --config configs/vision/simmim.py --workdir runs/simmim
    ssljax train --config configs/vision/simmim.py:target=hog --workdir runs/maskfeat
    ssljax train --config configs/vision/simmim.py:data=mnist --workdir runs/simmim-mnist
    ssljax train --config configs/vision/simmim.py:data=folder --workdir runs/own --config.data.source=images:DIR

Time: 5 minutes on one CPU core for MNIST.
Result: accuracy of a linear probe on held-out digits, one seed: 0.953, with gradients as targets 0.958 (raw pixels
0.921, untrained encoder 0.938); docs/results.md, section 1.
"""

import _images
import ml_collections

from ssljax.config import arguments

VARIANTS = {"pixels": dict(target="pixels"), "hog": dict(target="hog", error="l2", mask_ratio=0.4)}
# Most pixels of a digit are black: the median, which l1 predicts, is black too.
ERROR = {"mnist": dict(error="l2")}
AUGMENT = {
    "cifar10": dict(name="single", crop_scale=(0.67, 1.0), augment=dict(flip=0.5)),
    "mnist": dict(name="single", crop_scale=(0.8, 1.0), augment=dict(flip=0.0)),
}
AUGMENT["folder"] = AUGMENT["cifar10"]


def get_config(arg=""):
    a = arguments(arg, data=_images.DATA, target=tuple(VARIANTS))
    return ml_collections.ConfigDict(
        dict(
            model=dict(_images.vit(patch_size=8 if a["data"] == "folder" else 4), mask_token=True),
            objective=dict(
                name="simmim",
                **{**VARIANTS[a["target"]], **ERROR.get(a["data"], {})},
                augment=AUGMENT[a["data"]],
            ),
            data=_images.SOURCES[a["data"]],
            optimizer=dict(name="adamw", learning_rate=2e-3, weight_decay=0.05, b2=0.95, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10%"),
            evals=_images.probes(a["data"], feature=_images.VIT_FEATURE[a["data"]]),
            log=dict(every_steps=50),
            checkpoint=dict(every_steps=100),
            batch_size=64,
            steps=700,
        )
    )
