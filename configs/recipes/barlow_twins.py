"""Barlow Twins with a ResNet-50 (Zbontar et al. 2021): two views have equal and uncorrelated features.

Trains on ImageNet without labels for 1,000 epochs in batches of 2,048, with LARS.

    ssljax inspect --config configs/recipes/barlow_twins.py
    ssljax train --config configs/recipes/barlow_twins.py --workdir runs/barlow --config.data.source=images:DIR/{split}

Hardware: in the paper 32 V100; planned for 16 H100.
Time: about 124 hours in the paper; not run here: no such hardware.
Result: published accuracy of a linear classifier on frozen features: 73.2 % (table 1).
Source: Zbontar, Jing, Misra, LeCun, Deny 2021, arXiv:2103.03230, section 2.2, and the script of the authors (the factor
0.024 of the loss, with which their rates are multiplied in the paper).
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: crops are cut from pictures that are stored at 224 x 224. The statistics of batch norm have no
running averages, so features depend on the batch of an evaluation.
"""

import _imagenet

TOPOLOGIES = {"": "h100:2x8"}

RATE, RATE_OF_BIASES = 0.2, 0.0048  # in the paper, for batches of 256
VECTORS = r"/(bias|scale)$"  # biases, and the scales of batch norm


def get_config():
    objective = dict(
        name="barlow_twins",
        lambda_offdiag=5e-3,
        projector=dict(hidden=8192, output=8192, layers=3),
        augment=dict(size=224),  # the two distributions of BYOL
    )
    optimizer = dict(
        name="lars",
        learning_rate=RATE,
        lr_per=256,
        lr_multipliers=[(VECTORS, RATE_OF_BIASES / RATE)],
        weight_decay=1.5e-6,
        momentum=0.9,
        trust=1e-3,
    )
    return _imagenet.config(
        _imagenet.RESNET_50,
        objective,
        optimizer,
        dict(name="cosine", warmup="10 epochs", final=1e-3),
        batch_size=2048,
        epochs=1000,
        mesh=dict(data=-1),
    )
