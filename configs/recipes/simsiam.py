"""SimSiam with a ResNet-50 (Chen & He 2021): a predictor and a stopped gradient, without negatives or a teacher.

Trains on ImageNet without labels for 100 epochs in batches of 512, with plain momentum.

    ssljax inspect --config configs/recipes/simsiam.py
    ssljax train --config configs/recipes/simsiam.py --workdir runs/simsiam-r50 --config.data.source=images:DIR/{split}

Hardware: in the paper 8 GPUs; planned for 8 H100.
Time: not in the paper; not run here: no such hardware.
Result: published accuracy of a linear classifier on frozen features: 67.7 % with the decaying rate of this file, 68.1 %
if that of the predictor stays (table 1).
Source: Chen, He 2021, arXiv:2011.10566, section 3.
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: crops are cut from pictures that are stored at 224 x 224. The statistics of batch norm have no
running averages, so features depend on the batch of an evaluation.
"""

import _imagenet

TOPOLOGIES = {"": "h100:8"}


def get_config():
    objective = dict(
        name="simsiam",
        projector=dict(hidden=2048, output=2048, layers=3, final_norm=True),
        predictor=dict(hidden=512),
        augment=dict(size=224),  # the operations of MoCo v2
    )
    return _imagenet.config(
        _imagenet.RESNET_50,
        objective,
        dict(name="sgd", learning_rate=0.05, lr_per=256, weight_decay=1e-4, momentum=0.9),
        dict(name="cosine"),
        batch_size=512,
        epochs=100,
        mesh=dict(data=-1),
    )
