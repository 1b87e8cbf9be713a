"""VICReg with a ResNet-50 (Bardes et al. 2022): equal views, features with variance and without correlation.

Trains on ImageNet without labels for 1,000 epochs in batches of 2,048, with LARS.

    ssljax inspect --config configs/recipes/vicreg.py
    ssljax train --config configs/recipes/vicreg.py --workdir runs/vicreg-r50 --config.data.source=images:DIR/{split}

Hardware: in the authors' command 32 GPUs; planned for 16 H100.
Time: not in their documentation; not run here: no such hardware.
Result: published accuracy of a linear classifier on frozen features: 73.2 % (table 1).
Source: Bardes, Ponce, LeCun 2022, arXiv:2105.04906, section 4.2, and github.com/facebookresearch/vicreg.
Data: ImageNet-1k, 1,281,167 pictures for training, a folder for each class.
Differs from the paper: crops are cut from pictures that are stored at 224 x 224. The statistics of batch norm have no
running averages, so features depend on the batch of an evaluation.
"""

import _imagenet

TOPOLOGIES = {"": "h100:2x8"}


def get_config():
    objective = dict(
        name="vicreg",
        sim=25.0,
        var=25.0,
        cov=1.0,
        projector=dict(hidden=8192, output=8192, layers=3),
        augment=dict(size=224),
    )
    return _imagenet.config(
        _imagenet.RESNET_50,
        objective,
        dict(name="lars", learning_rate=0.2, lr_per=256, weight_decay=1e-6, momentum=0.9, trust=1e-3),
        dict(name="cosine", warmup="10 epochs", final=1e-3),  # to a rate of 0.002
        batch_size=2048,
        epochs=1000,
        mesh=dict(data=-1),
    )
