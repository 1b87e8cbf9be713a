"""SimCLR with a ResNet-50 (Chen et al. 2020): 1,000 epochs of ImageNet in batches of 4,096, with LARS.

Trains without labels; `batch=65536` is no setting of the paper, but a size at which the step is compiled.

    ssljax inspect --config configs/recipes/simclr.py
    ssljax train --config configs/recipes/simclr.py --workdir runs/simclr-r50 --config.data.source=images:DIR/{split}

Hardware: in the paper 128 TPU v3 cores; planned for 64 TPU v5e chips (batch=65536: 256).
Time: 15 hours in the paper (1.5 hours for 100 epochs); not run here: no such hardware.
Result: published accuracy of a linear classifier on frozen features: 69.3 % (table 6).
Source: Chen, Kornblith, Norouzi, Hinton 2020, arXiv:2002.05709, section 2.2 and appendices A, B.1, B.6.
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: crops are cut from pictures that are stored at 224 x 224. The statistics of batch norm have no
running averages, so features depend on the batch of an evaluation; with batch=65536 they are those of a quarter of the
batch.
"""

import _imagenet
import ml_collections

from ssljax.config import arguments

TOPOLOGIES = {"": "v5e:8x8", "batch=65536": "v5e:16x16"}


def get_config(arg=""):
    a = arguments(arg, batch=(4096, 65_536))
    return ml_collections.ConfigDict(
        dict(
            model=dict(name="resnet", preset="50", norm="batch", dtype="bfloat16"),
            objective=dict(
                name="simclr",
                temperature=0.1,
                mean=_imagenet.MEAN,
                std=_imagenet.STD,
                projector=dict(hidden=2048, output=128, layers=2),
                augment=dict(
                    name="two_views",
                    size=224,
                    crop_scale=(0.08, 1.0),
                    # The kernel of the blur has a tenth of the side; strength 1.
                    augment=dict(flip=0.5, jitter=0.8, jitter_strength=1.0, gray=0.2, blur=0.5, blur_sigma=(0.1, 2.0)),
                ),
            ),
            data=_imagenet.DATA,
            optimizer=dict(name="lars", learning_rate=0.3, lr_per=256, weight_decay=1e-6, momentum=0.9, trust=1e-3),
            schedule=dict(name="cosine", warmup="10 epochs"),
            mesh=dict(data=-1),
            microbatches=1 if a["batch"] == 4096 else 4,
            evals=_imagenet.PROBES,
            log=dict(every_steps=100),
            checkpoint=dict(every_steps=5_000),
            batch_size=a["batch"],
            steps="1000 epochs",
        )
    )
