"""Supervised ViT-S/16 (Beyer et al. 2022): a plain vision transformer on ImageNet without distillation or dropout.

Trains with all labels for 90 epochs (`epochs=300` for the longer run of the paper).

    ssljax inspect --config configs/recipes/vit.py
    ssljax train --config configs/recipes/vit.py --workdir runs/vit-s16 --config.data.source=images:DIR/{split}

Hardware: in the paper one TPU v3-8; planned for 8 H100.
Time: in the paper less than 7 hours, and less than a day for 300 epochs; not run here: no such hardware.
Result: published accuracy on the validation split: 76.5 % after 90 epochs (the authors' config), 80 % after 300
(abstract).
Source: Beyer, Zhai, Kolesnikov 2022, arXiv:2205.01580, section 2, and vit_s16_i1k.py of the authors' big_vision.
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: no RandAugment, which has no key here, so expect less. All pictures are trained on (there 99 %),
and the classifier is a single linear map. Crops are cut from pictures that are stored at 224 x 224. The paper's weight
decay of 1e-4 is not multiplied by the rate of 1e-3; here it is, and is 0.1.
"""

import _imagenet
import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:8", "epochs=300": "h100:8"}


def get_config(arg=""):
    a = arguments(arg, epochs=(90, 300))
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="vit", preset="small", patch_size=16, pool="mean", positions="sincos", dtype="bfloat16"),
            objective=dict(
                name="classification",
                mean=(0.5,),
                std=(0.5,),
                mixup=0.2,
                augment=dict(name="single", size=224, crop_scale=(0.05, 1.0), augment=dict(flip=0.5)),
            ),
            data=_imagenet.DATA,
            optimizer=dict(name="adamw", learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
            schedule=dict(name="cosine", warmup="10k steps"),
            mesh=dict(data=-1),
            evals=dict(loss=dict(test_split="val")),
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=1024,
            steps=f"{a['epochs']} epochs",
        )
    )
