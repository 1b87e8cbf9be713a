"""Masked autoencoder with ViT-B/16, ViT-L/16 or ViT-H/14 (He et al. 2022): three quarters of the patches are hidden.

Trains on ImageNet without labels for 1,600 epochs.

    ssljax inspect --config configs/recipes/mae.py:arch=vit_l16
    ssljax train --config configs/recipes/mae.py --workdir runs/mae-b16 --config.data.source=images:DIR/{split}

Hardware: in the paper 128 TPU v3 cores; planned for 64 TPU v5e chips (ViT-H/14: 256).
Time: in the authors' PyTorch code about 42 hours on 64 V100 for 800 epochs of ViT-L; not run here: no such hardware.
Result: published accuracy after finetuning with all labels: 83.6 % (ViT-B), 85.9 % (ViT-L), 86.9 % (ViT-H), table 3.
Source: He, Chen, Xie, Li, Dollár, Girshick 2022, arXiv:2111.06377, section 4 and table 8 (appendix A.1).
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: crops are cut from pictures that are stored at 224 x 224.
"""

import _imagenet
import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "v5e:8x8", "arch=vit_l16": "v5e:8x8", "arch=vit_h14": "v5e:16x16"}

ARCHITECTURES = {
    "vit_b16": dict(preset="base", patch_size=16),
    "vit_l16": dict(preset="large", patch_size=16),
    "vit_h14": dict(preset="huge", patch_size=14),
}


def get_config(arg=""):
    a = arguments(arg, arch=tuple(ARCHITECTURES))
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="vit", **ARCHITECTURES[a["arch"]], positions="sincos", dtype="bfloat16"),
            objective=dict(
                name="mae",
                mean=_imagenet.MEAN,
                std=_imagenet.STD,
                mask_ratio=0.75,
                normalize_targets=True,
                decoder=dict(preset="paper", dtype="bfloat16"),
                augment=dict(name="single", size=224, crop_scale=(0.2, 1.0), augment=dict(flip=0.5)),
            ),
            data=_imagenet.DATA,
            optimizer=dict(name="adamw", learning_rate=1.5e-4, lr_per=256, weight_decay=0.05, b1=0.9, b2=0.95),
            schedule=dict(name="cosine", warmup="40 epochs"),
            mesh=dict(data=1, fsdp=-1),
            evals=_imagenet.PROBES,
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=4096,
            steps="1600 epochs",
        )
    )
