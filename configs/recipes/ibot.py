"""iBOT with ViT-S/16 or ViT-B/16 (Zhou et al. 2022): DINO, and the teacher's output at masked patches.

Trains on ImageNet without labels: ViT-S/16 for 800 epochs, ViT-B/16 for 400.

    ssljax inspect --config configs/recipes/ibot.py:arch=vit_b16
    ssljax train --config configs/recipes/ibot.py --workdir runs/ibot-s16 --config.data.source=images:DIR/{split}

Hardware: in the authors' commands 16 GPUs (ViT-S/16) and 32 (ViT-B/16); planned for 16 H100 (ViT-B/16: 32).
Time: not in their documentation; not run here: no such hardware.
Result: published accuracy of k-NN and of a linear classifier on frozen features: 75.2 % and 77.9 % (ViT-S/16), 77.1 %
and 79.5 % (ViT-B/16), table 1.
Source: Zhou, Wei, Wang, Shen, Xie, Yuille, Kong 2022, arXiv:2111.07832, section 4 and appendix B.
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: masked patches are drawn one by one (there in blocks); weight decay is 0.04 throughout (there it
rises to 0.4 on a half cosine). Crops are cut from pictures that are stored at 224 x 224. Gradients are clipped by their
global norm (there by the norm of each parameter).
"""

import _imagenet

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:2x8", "arch=vit_b16": "h100:4x8"}

ARCHITECTURES = {
    "vit_s16": dict(preset="small", epochs=800, rate=5e-4, final=1e-6, clip=3.0, global_scale=(0.25, 1.0)),
    "vit_b16": dict(preset="base", epochs=400, rate=7.5e-4, final=2e-6, clip=0.3, global_scale=(0.32, 1.0)),
}


def get_config(arg=""):
    a = ARCHITECTURES[arguments(arg, arch=tuple(ARCHITECTURES))["arch"]]
    local_scale = (0.05, a["global_scale"][0])
    objective = dict(
        name="ibot",
        teacher_temperature=0.07,
        teacher_temperature_start=0.04,
        teacher_warmup=30 / a["epochs"],
        momentum=0.996,
        head=dict(hidden=2048, bottleneck=256, prototypes=8192),
        augment=dict(local_crops=10, size=224, local_size=96, global_scale=a["global_scale"], local_scale=local_scale),
    )
    optimizer = dict(
        name="adamw",
        learning_rate=a["rate"],
        lr_per=256,
        weight_decay=0.04,
        clip_norm=a["clip"],
        freeze=[("last_layer", "1 epoch")],
    )
    return _imagenet.config(
        dict(name="vit", preset=a["preset"], patch_size=16, drop_path=0.1, mask_token=True, dtype="bfloat16"),
        objective,
        optimizer,
        dict(name="cosine", warmup="10 epochs", final=a["final"] / (4 * a["rate"])),
        batch_size=1024,
        epochs=a["epochs"],
        mesh=dict(data=-1),
    )
