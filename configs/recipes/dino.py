"""DINO with ViT-S/16 or ViT-B/16 (Caron et al. 2021): a student matches its moving average across ten small crops.

Trains on ImageNet without labels: ViT-S/16 for 800 epochs, ViT-B/16 for 400.

    ssljax inspect --config configs/recipes/dino.py:arch=vit_b16
    ssljax train --config configs/recipes/dino.py --workdir runs/dino-s16 --config.data.source=images:DIR/{split}

Hardware: in the paper two servers of 8 V100 for ViT-S/16; planned for 16 H100 (ViT-B/16: 32).
Time: in the paper about 3 days for 300 epochs of ViT-S/16; not run here: no such hardware.
Result: published accuracy of k-NN and of a linear classifier on frozen features: 74.5 % and 77.0 % (ViT-S/16), 76.1 %
and 78.2 % (ViT-B/16), table 2.
Source: Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin 2021, arXiv:2104.14294, section 3.2, and the arguments
that are published with the weights of the authors.
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: weight decay is 0.04 throughout (there it rises to 0.4 on a half cosine). Crops are cut from
pictures that are stored at 224 x 224. Gradients are clipped by their global norm (there by the norm of each parameter).
"""

import _imagenet
import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "h100:2x8", "arch=vit_b16": "h100:4x8"}

ARCHITECTURES = {
    "vit_s16": dict(preset="small", drop_path=0.1, epochs=800, rate=5e-4, final=1e-5, clip=None, warm=30),
    "vit_b16": dict(preset="base", drop_path=0.1, epochs=400, rate=7.5e-4, final=2e-6, clip=0.3, warm=50),
}


def get_config(arg=""):
    a = ARCHITECTURES[arguments(arg, arch=tuple(ARCHITECTURES))["arch"]]
    batch_size = 1024
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="vit", preset=a["preset"], patch_size=16, drop_path=a["drop_path"], dtype="bfloat16"),
            objective=dict(
                name="dino",
                mean=_imagenet.MEAN,
                std=_imagenet.STD,
                student_temperature=0.1,
                teacher_temperature=0.07,
                teacher_temperature_start=0.04,
                teacher_warmup=a["warm"] / a["epochs"],
                centering=0.9,
                momentum=0.996,
                head=dict(hidden=2048, bottleneck=256, prototypes=65_536),
                augment=dict(
                    name="multi_crop",
                    local_crops=10,
                    size=224,
                    local_size=96,
                    global_scale=(0.25, 1.0),
                    local_scale=(0.05, 0.25),
                ),
            ),
            data=_imagenet.DATA,
            optimizer=dict(
                name="adamw",
                learning_rate=a["rate"],
                lr_per=256,
                weight_decay=0.04,
                clip_norm=a["clip"],
                freeze=[("last_layer", "1 epoch")],
            ),
            schedule=dict(name="cosine", warmup="10 epochs", final=a["final"] / (a["rate"] * batch_size / 256)),
            mesh=dict(data=-1),
            evals=_imagenet.PROBES,
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=batch_size,
            steps=f"{a['epochs']} epochs",
        )
    )
