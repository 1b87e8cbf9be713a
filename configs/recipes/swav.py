"""SwAV with a ResNet-50 (Caron et al. 2020): balanced cluster assignments are predicted across two sizes of crops.

Trains on ImageNet without labels for 800 epochs, in batches of 4,096.

    ssljax inspect --config configs/recipes/swav.py
    ssljax train --config configs/recipes/swav.py --workdir runs/swav-r50 --config.data.source=images:DIR/{split}

Hardware: in the authors' scripts 64 GPUs; planned for 64 H100.
Time: at most 50 hours in the authors' scripts; not run here: no such hardware.
Result: published accuracy of a linear classifier on frozen features: 75.3 % (abstract).
Source: Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, arXiv:2006.09882, section 4 and appendix A, and the
scripts of the authors (temperature, crops, rates, 313 steps with frozen prototypes).
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: crops are cut from pictures that are stored at 224 x 224. The statistics of batch norm have no
running averages, and are those of the whole batch (there those of 8 devices).
"""

import _imagenet
import ml_collections

TOPOLOGIES = {"": "h100:8x8"}


def get_config(arg=""):
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="resnet", preset="50", norm="batch", dtype="bfloat16"),
            objective=dict(
                name="swav",
                mean=_imagenet.MEAN,
                std=_imagenet.STD,
                prototypes=3000,
                temperature=0.1,
                epsilon=0.05,
                sinkhorn_iterations=3,
                projector=dict(hidden=2048, output=128, layers=2),
                augment=dict(
                    name="multi_crop",
                    local_crops=6,
                    size=224,
                    local_size=96,
                    global_scale=(0.14, 1.0),
                    local_scale=(0.05, 0.14),
                ),
            ),
            data=_imagenet.DATA,
            optimizer=dict(
                name="lars",
                learning_rate=4.8,
                weight_decay=1e-6,
                momentum=0.9,
                trust=1e-3,
                freeze=[("^prototypes", 313)],
            ),
            schedule=dict(name="cosine", warmup="10 epochs", final=1e-3),
            mesh=dict(data=-1),
            evals=_imagenet.PROBES,
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=4096,
            steps="800 epochs",
        )
    )
