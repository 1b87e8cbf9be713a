"""BYOL with a ResNet-50 (Grill et al. 2020): a student predicts its moving average, without negatives.

Trains on ImageNet without labels for 1,000 epochs in batches of 4,096, with LARS.

    ssljax inspect --config configs/recipes/byol.py
    ssljax train --config configs/recipes/byol.py --workdir runs/byol-r50 --config.data.source=images:DIR/{split}

Hardware: in the paper 512 TPU v3 cores; planned for 64 TPU v5e chips.
Time: about 8 hours in the paper; not run here: no such hardware.
Result: published accuracy of a linear classifier on frozen features: 74.3 % (table 1).
Source: Grill, Strub, Altché, Tallec, Richemond and others 2020, arXiv:2006.07733, sections 3.2 and 3.3, and appendix B.
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: crops are cut from pictures that are stored at 224 x 224. The statistics of batch norm have no
running averages, so features depend on the batch of an evaluation.
"""

import _imagenet

TOPOLOGIES = {"": "v5e:8x8"}


def get_config():
    objective = dict(
        name="byol",
        projector=dict(hidden=4096, output=256),
        predictor=dict(hidden=4096),
        teacher=dict(momentum=0.996, schedule="cosine"),
        augment=dict(size=224),  # the two distributions of the paper
    )
    return _imagenet.config(
        _imagenet.RESNET_50,
        objective,
        dict(name="lars", learning_rate=0.2, lr_per=256, weight_decay=1.5e-6, momentum=0.9, trust=1e-3),
        dict(name="cosine", warmup="10 epochs"),
        batch_size=4096,
        epochs=1000,
        mesh=dict(data=-1),
    )
