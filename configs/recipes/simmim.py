"""SimMIM with ViT-B/16 (Xie et al. 2022): masked patches enter the encoder, and a linear head restores their pixels.

Trains on ImageNet without labels for 800 epochs in batches of 2,048.

    ssljax inspect --config configs/recipes/simmim.py
    ssljax train --config configs/recipes/simmim.py --workdir runs/simmim-b16 --config.data.source=images:DIR/{split}

Hardware: in the paper 32 V100; planned for 16 H100.
Time: not in the authors' documentation; not run here: no such hardware.
Result: published accuracy after finetuning with all labels: 83.8 % (table 6).
Source: Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu 2022, arXiv:2111.09886, section 4.1, and the configs of
github.com/microsoft/SimMIM (rates and schedule).
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: single patches of 16 x 16 pixels are hidden, there blocks of 32 x 32; the rate falls on a
cosine, there to a tenth after 700 epochs; each layer has its own relative positions, there all share them.
"""

import _imagenet

TOPOLOGIES = {"": "h100:2x8"}


def get_config():
    model = dict(name="vit", preset="base", patch_size=16, mask_token=True, drop_path=0.1, dtype="bfloat16")
    return _imagenet.config(
        dict(model, positions="none", position_bias="grid"),
        dict(name="simmim", mask_ratio=0.6, error="l1", augment=dict(size=224, crop_scale=(0.67, 1.0))),
        dict(name="adamw", learning_rate=1e-4, lr_per=512, weight_decay=0.05, b1=0.9, b2=0.999, clip_norm=5.0),
        dict(name="cosine", warmup="10 epochs"),
        batch_size=2048,
        epochs=800,
        mesh=dict(data=1, fsdp=-1),
    )
