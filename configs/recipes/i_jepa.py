"""I-JEPA with ViT-B/16, ViT-L/16 or ViT-H/14 (Assran et al. 2023): vectors of hidden blocks are predicted, not pixels.

Trains on ImageNet without labels: ViT-B/16 and ViT-L/16 for 600 epochs, ViT-H/14 for 300.

    ssljax inspect --config configs/recipes/i_jepa.py:arch=vit_h14
    ssljax train --config configs/recipes/i_jepa.py --workdir runs/i_jepa-b16 --config.data.source=images:DIR/{split}

Hardware: in the paper 16 A100 for ViT-H/14; planned for 16 H100 (ViT-H/14: 64).
Time: under 72 hours for ViT-H/14 in the paper; not run here: no such hardware.
Result: published accuracy of a linear classifier on frozen features: 72.9 % (ViT-B/16), 77.5 % (ViT-L/16), 79.3 %
(ViT-H/14), table 1.
Source: Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas 2023, arXiv:2301.08243, section 3 and
appendix A.
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: weight decay is 0.04 throughout (there it rises to 0.4). The encoder sees the same number of
patches of each picture, a quarter (there those that are left of the context). Pictures are stored at 224 x 224.
"""

import _imagenet

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:2x8", "arch=vit_l16": "h100:2x8", "arch=vit_h14": "h100:8x8"}

ARCHITECTURES = {
    "vit_b16": dict(preset="base", patch_size=16, epochs=600, predictor=6),
    "vit_l16": dict(preset="large", patch_size=16, epochs=600, predictor=12),
    "vit_h14": dict(preset="huge", patch_size=14, epochs=300, predictor=12),
}


def get_config(arg=""):
    a = ARCHITECTURES[arguments(arg, arch=tuple(ARCHITECTURES))["arch"]]
    objective = dict(
        name="i_jepa",
        predictor=dict(preset=None, width=384, depth=a["predictor"], heads=12, dtype="bfloat16"),
        teacher=dict(momentum=0.996, schedule="linear"),
        augment=dict(size=224, crop_scale=(0.3, 1.0)),
    )
    model = dict(name="vit", preset=a["preset"], patch_size=a["patch_size"], positions="sincos", dtype="bfloat16")
    return _imagenet.config(
        dict(model, pool="mean"),
        objective,
        dict(name="adamw", learning_rate=1e-3, weight_decay=0.04),
        dict(name="cosine", warmup="15 epochs", final=1e-3),
        batch_size=2048,
        epochs=a["epochs"],
        mesh=dict(data=1, fsdp=-1),
    )
