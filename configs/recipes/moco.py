"""MoCo v3 (Chen, Xie & He 2021) with a ResNet-50, ViT-S/16 or ViT-B/16: keys of a moving average, without a queue.

Trains on ImageNet without labels in batches of 4,096: the ResNet for 1,000 epochs, the transformers for 300.

    ssljax inspect --config configs/recipes/moco.py:arch=vit_b16
    ssljax train --config configs/recipes/moco.py --workdir runs/moco-r50 --config.data.source=images:DIR/{split}

Hardware: in the authors' commands 16 V100 (ResNet-50), 32 (ViT-S), 64 (ViT-B); planned for 64 TPU v5e chips.
Time: not in their documentation; not run here: no such hardware.
Result: published accuracy of a linear classifier on frozen features: 74.6 % (ResNet-50), 73.2 % (ViT-S), 76.7 %
(ViT-B).
Source: Chen, Xie, He 2021, arXiv:2104.02057, section 3 and appendix A, and CONFIG.md of
github.com/facebookresearch/moco-v3.
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: crops are cut from pictures that are stored at 224 x 224. The statistics of batch norm, in the
heads of the transformers too, have no running averages.
"""

import _imagenet

from ssljax.config import arguments

TOPOLOGIES = {"": "v5e:8x8", "arch=vit_s16": "v5e:8x8", "arch=vit_b16": "v5e:8x8"}

LARS = dict(name="lars", learning_rate=0.3, lr_per=256, weight_decay=1.5e-6, momentum=0.9, trust=1e-3)
# The projection of patches stays as it was drawn, against instabilities (section 4.2).
ADAMW = dict(name="adamw", learning_rate=1.5e-4, lr_per=256, weight_decay=0.1, lr_multipliers=[("encoder/patch/", 0.0)])


def vit(preset):
    return dict(
        model=dict(name="vit", preset=preset, patch_size=16, positions="sincos", dtype="bfloat16"),
        heads=dict(projector=dict(hidden=4096, output=256, layers=3, final_norm=True)),
        optimizer=ADAMW,
        momentum=0.99,
        temperature=0.2,
        warmup=40,
        epochs=300,
        crops=(0.08, 1.0),
    )


ARCHITECTURES = {
    "resnet50": dict(
        model=_imagenet.RESNET_50,
        heads=dict(projector=dict(hidden=4096, output=256, layers=2, final_norm=True)),
        optimizer=LARS,
        momentum=0.996,
        temperature=1.0,
        warmup=10,
        epochs=1000,
        crops=(0.2, 1.0),
    ),
    "vit_s16": vit("small"),
    "vit_b16": vit("base"),
}


def get_config(arg=""):
    a = ARCHITECTURES[arguments(arg, arch=tuple(ARCHITECTURES))["arch"]]
    objective = dict(
        name="moco",
        temperature=a["temperature"],
        predictor=dict(hidden=4096, final_norm=True),
        teacher=dict(momentum=a["momentum"], schedule="cosine"),
        augment=dict(size=224, crop_scale=a["crops"]),  # the two distributions of BYOL
        **a["heads"],
    )
    schedule = dict(name="cosine", warmup=f"{a['warmup']} epochs")
    return _imagenet.config(
        a["model"], objective, a["optimizer"], schedule, batch_size=4096, epochs=a["epochs"], mesh=dict(data=-1)
    )
